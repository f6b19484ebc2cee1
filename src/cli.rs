//! The command line: arguments in, a [`Command`] out. No other module uses clap.
//!
//! To add a subcommand, add a variant to `Words` and to [`Command`], and the row between them.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::config::help_table;
use crate::exit;
use crate::human::OutputFormat;
use crate::preflight;
use crate::process::GUARDIAN;
use crate::report::{ListedTasks, ReportRequest, TaskQuery};
use crate::status;
use crate::task::path_probe::{self, ProbeDepth};

/// The version; of a release, its commit and that commit's date too, which scripts/release passes on.
const VERSION: &str = match option_env!("EWMS_BUILD_VERSION") {
    Some(version) => version,
    None => concat!(env!("CARGO_PKG_VERSION"), " (not a release)"),
};

/// A parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Be a pilot, configured by the environment.
    Run,
    /// Be the guardian of a pilot's containers. Started by the pilot, not by people.
    Guardian,
    /// Check the machine as a pilot would, and report the findings.
    Check(OutputFormat),
    /// Look at paths that may hang. Started by the pilot, not by people.
    Look(Vec<PathBuf>, ProbeDepth),
    /// Make a container's namespaces. Started by the pilot, not by people.
    Namespaces,
    /// Add records up and report the sums.
    Report(ReportRequest),
    /// Show what the pilots of this job do now.
    Status(status::StatusRequest),
    /// Print this text, made from the definition of the command line itself.
    Print(Vec<u8>),
}

/// Takes events from a queue, runs a container image once for each, publishes what it wrote, and only then acknowledges the event.
///
/// Settings come from the environment variables below, or from the file ewms_htcondor_envfile.sh in
/// the working directory or in HTCondor's scratch directory; a variable that is set wins over it.
#[derive(Debug, Parser)]
#[expect(
    clippy::doc_markdown,
    reason = "clap shows the comment as it is, backticks included"
)]
#[command(name = "ewms-pilot", version = VERSION, after_long_help = after_long_help())]
struct Arguments {
    #[command(subcommand)]
    words: Option<Words>,
}

#[derive(Debug, Subcommand)]
enum Words {
    /// Take events and run them; the same as no subcommand.
    #[command(after_long_help = after_long_help())]
    Run,
    #[command(name = GUARDIAN, hide = true)]
    Guardian,
    /// Check this machine and the brokers as the pilot would before its first event; takes none.
    ///
    /// A line each: verdict, check, what was seen, how to fix it. Exits as the pilot would.
    Check {
        /// Say it as a JSON array instead
        #[arg(long)]
        json: bool,
    },
    #[command(name = path_probe::WORD, hide = true)]
    Look {
        #[arg(long, conflicts_with = "itself")]
        through: bool,
        #[arg(long)]
        itself: bool,
        paths: Vec<PathBuf>,
    },
    #[command(name = preflight::NAMESPACES, hide = true)]
    Namespaces,
    /// Say what a pilot that runs on this machine does now: its tasks, its queues, its disk.
    ///
    /// For a person inside its job (condor_ssh_to_job): reads the file ewms-pilot-status-ID.json that the
    /// pilot keeps beside its ewms-pilot-data, and measures CPU (over half a second, in percent of a core)
    /// and memory of its tasks. Without PATH it searches the working directory, HTCondor's scratch
    /// directory, and EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST. Exits with 0 if it found a pilot
    /// that runs, with 2 if there is none, or only what one left that was killed.
    #[expect(
        clippy::doc_markdown,
        reason = "clap shows the comment as it is, backticks included"
    )]
    Status {
        /// The directory that holds ewms-pilot-data, or a status file
        path: Option<PathBuf>,
        /// Print all that is known as JSON instead
        #[arg(long)]
        json: bool,
    },
    /// Say what pilots and their tasks did, from the records that they brought home.
    Report {
        /// Record files (.jsonl, also as .gz or .zst), directories of them, or globs
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Write the report as a page, too
        #[arg(long, value_name = "OUT")]
        html: Option<PathBuf>,
        /// The page's heading, instead of the taskforce
        #[arg(long, value_name = "TEXT", requires = "html")]
        title: Option<String>,
        /// List tasks instead, a line each: job, task, host, site, end, outcome, run time, error
        #[arg(long, value_name = "WHICH", conflicts_with = "html")]
        tasks: Option<TasksWord>,
        /// Of these, only those of this site or resource
        #[arg(long, requires = "tasks")]
        site: Option<String>,
        /// Of these, only those whose error contains this text
        #[arg(long, value_name = "TEXT", requires = "tasks")]
        error: Option<String>,
        /// Print all numbers as JSON instead of tables; with --tasks, the tasks' records
        #[arg(long)]
        json: bool,
    },
    /// Print a script that completes this program's arguments in a shell.
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page.
    Man,
}

/// The tasks that `report --tasks` lists.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TasksWord {
    /// Failed by their own fault; dead-lettered and rejected ones, too
    Failed,
    /// Ran as long as the slowest 5 % of those that succeeded, the longest first
    Slow,
    /// Given back to the queue: untried, or failed by the machine, the image or the broker
    GivenBack,
}

impl From<TasksWord> for ListedTasks {
    fn from(word: TasksWord) -> Self {
        match word {
            TasksWord::Failed => Self::Failed,
            TasksWord::Slow => Self::Slow,
            TasksWord::GivenBack => Self::GivenBack,
        }
    }
}

/// Reads the process's arguments. Doesn't return when they ask for help or the version (exit code
/// 0), or are wrong (exit code 2, which is also that of wrong variables).
#[must_use]
pub fn parse() -> Command {
    parse_from(std::env::args_os()).unwrap_or_else(|stop| stop.exit())
}

fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let Arguments { words } = Arguments::try_parse_from(arguments)?;
    Ok(match words {
        None | Some(Words::Run) => Command::Run,
        Some(Words::Guardian) => Command::Guardian,
        Some(Words::Check { json }) => Command::Check(if json {
            OutputFormat::Json
        } else {
            OutputFormat::Text
        }),
        Some(Words::Look {
            through,
            itself,
            paths,
        }) => Command::Look(
            paths,
            match (through, itself) {
                (true, _) => ProbeDepth::Through,
                (false, true) => ProbeDepth::Itself,
                (false, false) => ProbeDepth::Glance,
            },
        ),
        Some(Words::Namespaces) => Command::Namespaces,
        Some(Words::Report {
            paths,
            html,
            title,
            tasks,
            site,
            error,
            json,
        }) => Command::Report(ReportRequest {
            paths,
            page: html,
            title,
            tasks: tasks.map(|which| TaskQuery {
                which: which.into(),
                site,
                error,
            }),
            output: if json {
                OutputFormat::Json
            } else {
                OutputFormat::Text
            },
        }),
        Some(Words::Status { path, json }) => Command::Status(status::StatusRequest {
            path,
            output: if json {
                OutputFormat::Json
            } else {
                OutputFormat::Text
            },
        }),
        Some(Words::Completions { shell }) => Command::Print(completions(shell)),
        Some(Words::Man) => Command::Print(manual()),
    })
}

/// The definition without the subcommands that only the pilot itself uses.
fn for_people() -> clap::Command {
    let all = Arguments::command();
    let shown = all.get_subcommands().filter(|word| !word.is_hide_set());
    let about = |text: Option<&clap::builder::StyledStr>| text.cloned().unwrap_or_default();
    clap::Command::new(all.get_name().to_owned())
        .version(VERSION)
        .about(about(all.get_about()))
        .long_about(about(all.get_long_about()))
        .disable_help_subcommand(true)
        .subcommands(shown.cloned())
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut definition = for_people();
    let name = definition.get_name().to_owned();
    clap_complete::generate(shell, &mut definition, name, &mut script);
    script
}

/// The manual page of the program, with the arguments of each subcommand.
fn manual() -> Vec<u8> {
    let mut definition = for_people();
    definition.build();
    let whole = Man::new(definition.clone());
    let mut page = Vec::new();
    // Writing into memory can't fail.
    let _ = whole.render(&mut page);
    for subcommand in definition
        .get_subcommands()
        .filter(|each| !each.is_hide_set())
    {
        let name = subcommand.get_name().to_uppercase();
        let of_it = Man::new(subcommand.clone());
        let _ = writeln!(page, ".SH {name}");
        let _ = of_it.render_description_section(&mut page);
        if subcommand.get_arguments().next().is_some() {
            let _ = of_it.render_options_section(&mut page);
        }
    }
    // Lines as they are: the tables are laid out already.
    let tables = after_long_help()
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    let _ = writeln!(page, ".SH VARIABLES AND EXIT CODES\n.nf\n{tables}\n.fi");
    page
}

fn after_long_help() -> String {
    format!(
        "{}\nExit codes:\n{}",
        help_table::help(),
        help_table::two_columns(exit::TABLE)
    )
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;
    use crate::config::variables::ALL;

    fn parse(words: &[&str]) -> Result<Command, clap::Error> {
        parse_from(["ewms-pilot"].iter().chain(words).map(OsString::from))
    }

    fn text(words: &[&str]) -> String {
        parse(words).expect_err("text to show").to_string()
    }

    #[test]
    fn the_definition_has_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn without_a_subcommand_it_is_the_pilot() {
        assert_eq!(parse(&[]).expect("a command"), Command::Run);
        assert_eq!(parse(&["run"]).expect("a command"), Command::Run);
    }

    #[test]
    fn the_guardian_is_not_for_people() {
        assert_eq!(parse(&["guardian"]).expect("a command"), Command::Guardian);
        for words in [&["-h"][..], &["--help"]] {
            assert!(!text(words).contains("guardian"));
        }
    }

    #[test]
    fn unknown_words_are_a_usage_error_with_the_configuration_exit_code() {
        for words in [&["--nonsense"][..], &["nonsense"], &["run", "x"]] {
            let error = parse(words).expect_err("a usage error");
            assert_eq!(
                error.exit_code(),
                i32::from(exit::Exit::Configuration.code()),
                "{words:?}"
            );
        }
    }

    #[test]
    fn long_help_has_every_variable_and_exit_code() {
        for words in [&["--help"][..], &["run", "--help"]] {
            let help = text(words);
            for variable in ALL {
                let line = format!("  {} [", variable.name);
                assert!(help.contains(&line), "{words:?} lacks {}", variable.name);
            }
            for (code, _) in exit::TABLE {
                assert!(
                    help.contains(&format!("\n  {code} ")),
                    "{words:?} lacks exit code {code}"
                );
            }
        }
    }

    #[test]
    fn what_is_made_for_shells_and_man_names_what_people_may_write_and_nothing_else() {
        for words in [
            &["man"][..],
            &["completions", "bash"],
            &["completions", "zsh"],
            &["completions", "fish"],
        ] {
            let Ok(Command::Print(text)) = parse(words) else {
                panic!("{words:?} prints");
            };
            let text = String::from_utf8(text)
                .expect("it is text")
                .replace('\\', "");
            for shown in ["run", "check", "status", "report", "html", "completions"] {
                assert!(
                    text.to_lowercase().contains(shown),
                    "{words:?} lacks {shown}"
                );
            }
            for hidden in [GUARDIAN, path_probe::WORD, preflight::NAMESPACES] {
                assert!(!text.contains(hidden), "{words:?} has {hidden}");
            }
            let variables = ALL
                .iter()
                .filter(|variable| text.contains(variable.name))
                .count();
            assert_eq!(
                variables,
                if words == ["man"] { ALL.len() } else { 0 },
                "{words:?}"
            );
        }
    }

    #[test]
    fn short_help_fits_a_screen() {
        let help = text(&["-h"]);
        assert!(help.lines().count() < 20, "{help}");
        assert!(!help.contains("EWMS_PILOT_PREFETCH"), "{help}");
    }

    #[test]
    fn version_is_the_crates_and_says_whether_it_is_a_release() {
        let error = parse(&["--version"]).expect_err("text to show");
        assert_eq!(error.kind(), ErrorKind::DisplayVersion);
        assert_eq!(
            error.to_string(),
            format!("ewms-pilot {} (not a release)\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
