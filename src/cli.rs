//! The command line: arguments in, a [`Command`] out. No other module uses clap.
//!
//! To add a subcommand, add a variant to `Words` and to [`Command`], and the row between them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::human::OutputFormat;
use crate::pilot::{CheckPlace, CheckRequest, TrialRequest};
use crate::preflight;
use crate::process::GUARDIAN;
use crate::report::{ListedTasks, ReportRequest, TaskQuery};
use crate::status::{self, Repeat};
use crate::task::path_probe::{self, ProbeDepth};
use pages::{EXAMPLES, VERSION, after_long_help};
use try_arguments::TryArguments;

mod pages;
mod try_arguments;

pub use pages::first_words;

/// A parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Be a pilot, configured by the environment.
    Run,
    /// Be the guardian of a pilot's containers. Started by the pilot, not by people.
    Guardian,
    /// Run files as events, without queues.
    Try(Box<TrialRequest>),
    /// Check the machine as a pilot would, or what pilots would be submitted with, and report the findings.
    Check(CheckRequest),
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

/// Runs a container image once for each event of a queue, and sends what it wrote.
#[derive(Debug, Parser)]
#[command(name = "ewms-pilot", version = VERSION, long_about = EXAMPLES, after_long_help = after_long_help())]
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
    /// Run an image on files of yours, in the containers that a pilot would use: no queue, no settings.
    ///
    /// Each input file is one event. IMAGE is anything that Apptainer takes: a directory, a .sif file,
    /// docker-archive:FILE, oci:DIRECTORY, docker://NAME. All but directories are converted once and kept in
    /// ${XDG_CACHE_HOME:-~/.cache}/ewms-pilot. A line for each input says how it ended; then come the settings to
    /// submit pilots with that do the same. Variables of the pilot that are set here count, too: external
    /// directories or EWMS_PILOT_TASK_ENV_JSON, for example.
    ///
    /// Exits with 0 if no input failed, with 1 if one did, and otherwise as a pilot would.
    ///
    /// Example: ewms-pilot try scan.sif --args 'python3 /scan.py {{INFILE}} {{OUTFILE}}' -j 4 pixels/*.json
    #[expect(
        clippy::doc_markdown,
        reason = "clap shows the comment as it is, backticks included"
    )]
    Try(TryArguments),
    /// Check this machine and the brokers as the pilot would before its first event; takes none.
    ///
    /// A line each: verdict, check, what was seen, how to fix it. Exits as the pilot would.
    Check {
        /// Check what pilots would be submitted with instead, on the submit node: env file, settings, tokens,
        /// queues; needs no Apptainer and no image
        #[arg(long)]
        submit: bool,
        /// The env file, if it is not the usual one
        #[arg(long, value_name = "FILE")]
        env_file: Option<PathBuf>,
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
        /// Show it again and again, every 2 seconds or as many as given, until Ctrl-C or the pilot's end
        #[arg(
            long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
            value_parser = clap::value_parser!(u16).range(1..)
        )]
        watch: Option<u16>,
        /// Print all that is known as JSON instead
        #[arg(long, conflicts_with = "watch")]
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
        Some(Words::Try(arguments)) => Command::Try(Box::new(arguments.into())),
        Some(Words::Check {
            submit,
            env_file,
            json,
        }) => Command::Check(CheckRequest {
            place: if submit {
                CheckPlace::SubmitNode
            } else {
                CheckPlace::ExecutionPoint
            },
            env_file,
            output: if json {
                OutputFormat::Json
            } else {
                OutputFormat::Text
            },
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
        Some(Words::Status { path, watch, json }) => Command::Status(status::StatusRequest {
            path,
            repeat: watch.map_or(Repeat::Once, |secs| {
                Repeat::Every(Duration::from_secs(secs.into()))
            }),
            output: if json {
                OutputFormat::Json
            } else {
                OutputFormat::Text
            },
        }),
        Some(Words::Completions { shell }) => {
            Command::Print(pages::completions(&Arguments::command(), shell))
        }
        Some(Words::Man) => Command::Print(pages::manual(&Arguments::command())),
    })
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;
    use crate::config::variables::ALL;
    use crate::exit;

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
            for shown in [
                "run",
                "try",
                "check",
                "status",
                "report",
                "html",
                "completions",
            ] {
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
    fn the_manual_names_no_page_that_is_not_there() {
        let Ok(Command::Print(page)) = parse(&["man"]) else {
            panic!("man prints");
        };
        let page = String::from_utf8(page)
            .expect("it is text")
            .replace('\\', "");
        assert!(!page.contains("(1)"), "{page}");
        assert!(page.contains("\ntry\nRun an image on files"), "{page}");
    }

    #[test]
    fn help_has_examples_first_then_what_everybody_needs_then_the_rest_in_groups() {
        let help = text(&["--help"]);
        let at = |words: &str| {
            help.find(words)
                .unwrap_or_else(|| panic!("{words}: {help}"))
        };
        let order = [
            "ewms-pilot try scan.sif",
            "Usage:",
            "Variables that everybody needs",
            "  EWMS_PILOT_TASK_IMAGE [",
            "\nTask:",
            "  EWMS_PILOT_TASK_ENV_JSON [",
            "\nQueues:",
            "\nLimits:",
            "\nFiles:",
            "\nHTCondor:",
            "\nAdvanced:",
            "\nExit codes:",
        ];
        let places: Vec<usize> = order.into_iter().map(at).collect();
        assert!(places.is_sorted(), "{places:?}");
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
