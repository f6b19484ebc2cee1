//! Texts for people that are made of the definition of the command line and of the table of variables: help,
//! the manual page, completions, and the first words to a newcomer.

use std::io::Write as _;

use clap_complete::Shell;
use clap_mangen::Man;

use crate::config::help_table;
use crate::exit;

/// The version; of a release, its commit and that commit's date too, which scripts/release passes on.
pub(super) const VERSION: &str = match option_env!("EWMS_BUILD_VERSION") {
    Some(version) => version,
    None => concat!(env!("CARGO_PKG_VERSION"), " (not a release)"),
};

/// What `--help` shows before anything else.
pub(super) const EXAMPLES: &str = "\
Runs a container image once for each event of a queue, and sends what it wrote.

Examples:
  Run an image on files of yours, in the containers that a pilot would use:
    ewms-pilot try scan.sif --args 'python3 /scan.py {{INFILE}} {{OUTFILE}}' pixels/*.json
  See whether this machine and the settings will do:
    ewms-pilot check
  Be a pilot, as the variables or ./ewms_htcondor_envfile.sh say:
    ewms-pilot
  Run 200 pilots with HTCondor, and add up what they did:
    condor_submit n_pilots=200 task_image=/cvmfs/... condor/ewms-pilot.sub
    ewms-pilot report logs/";

/// The first words of a pilot that was told nothing at all.
#[must_use]
pub fn first_words() -> String {
    format!(
        "\
ewms-pilot {} takes events from a queue, runs a container image once for each, and sends what it wrote.
Nothing is set here, so there is nothing to run. Three things to do:

  Try an image on files of yours, without a queue or settings:
      ewms-pilot try IMAGE --args '... {{{{INFILE}}}} {{{{OUTFILE}}}}' FILE...
  Be a pilot: put the settings into variables, or into a file ewms_htcondor_envfile.sh here, and look at them:
      ewms-pilot check
  Run pilots with HTCondor, and add up what they did:
      condor_submit n_pilots=200 task_image=IMAGE condor/ewms-pilot.sub
      ewms-pilot report logs/

ewms-pilot --help lists the settings, first the dozen that everybody needs.",
        env!("CARGO_PKG_VERSION")
    )
}

/// The definition without the subcommands that only the pilot itself uses.
fn for_people(all: &clap::Command) -> clap::Command {
    let shown = all.get_subcommands().filter(|word| !word.is_hide_set());
    let about = |text: Option<&clap::builder::StyledStr>| text.cloned().unwrap_or_default();
    clap::Command::new(all.get_name().to_owned())
        .version(VERSION)
        .about(about(all.get_about()))
        .long_about(about(all.get_long_about()))
        .disable_help_subcommand(true)
        .subcommands(shown.cloned())
}

pub(super) fn completions(all: &clap::Command, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut definition = for_people(all);
    let name = definition.get_name().to_owned();
    clap_complete::generate(shell, &mut definition, name, &mut script);
    script
}

/// The manual page of the program, with the arguments of each subcommand.
pub(super) fn manual(all: &clap::Command) -> Vec<u8> {
    let mut definition = for_people(all);
    definition.build();
    let whole = Man::new(definition.clone());
    let mut page = Vec::new();
    // Writing into memory can't fail. The library's own list of commands names pages that don't exist.
    let _ = whole.render_title(&mut page);
    let _ = whole.render_name_section(&mut page);
    let _ = whole.render_synopsis_section(&mut page);
    let _ = whole.render_description_section(&mut page);
    let _ = whole.render_options_section(&mut page);
    let subcommands = || {
        let all = definition.get_subcommands();
        all.filter(|each| !each.is_hide_set())
    };
    let _ = writeln!(page, ".SH COMMANDS");
    for subcommand in subcommands() {
        let about = subcommand.get_about().map(ToString::to_string);
        let _ = writeln!(
            page,
            ".TP\n{}\n{}",
            subcommand.get_name(),
            roff(&about.unwrap_or_default())
        );
    }
    for subcommand in subcommands() {
        let name = subcommand.get_name().to_uppercase();
        let of_it = Man::new(subcommand.clone());
        let _ = writeln!(page, ".SH {name}");
        let _ = of_it.render_description_section(&mut page);
        if subcommand.get_arguments().next().is_some() {
            let _ = of_it.render_options_section(&mut page);
        }
    }
    // Lines as they are: the tables are laid out already.
    let _ = writeln!(
        page,
        ".SH VARIABLES AND EXIT CODES\n.nf\n{}\n.fi",
        roff(&after_long_help())
    );
    page
}

/// A text in which roff finds nothing to obey.
fn roff(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
}

pub(super) fn after_long_help() -> String {
    format!(
        "{}\nExit codes:\n{}",
        help_table::help(),
        help_table::two_columns(exit::TABLE)
    )
}
