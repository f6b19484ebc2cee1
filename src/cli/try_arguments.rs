//! The arguments of `ewms-pilot try`.

use std::path::PathBuf;

use crate::config::{self, variables::MOST_SECONDS};
use crate::pilot::{ExistingResults, TrialRequest};

#[expect(
    clippy::doc_markdown,
    reason = "clap shows the comments as they are, backticks included"
)]
#[derive(Debug, clap::Args)]
pub(super) struct TryArguments {
    /// The image that each input is run with
    image: String,
    /// The files, all with the same extension
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Arguments of the image, quoted as for a shell; {{INFILE}}, {{OUTFILE}}, {{DATA_HUB}} stand for paths
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    args: String,
    /// An image that is run once, before all inputs, to fill {{DATA_HUB}}
    #[arg(long, value_name = "IMAGE")]
    init_image: Option<String>,
    /// Its arguments
    #[arg(
        long,
        value_name = "ARGS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true,
        requires = "init_image"
    )]
    init_args: String,
    /// Where results go, each under the name of its input, and the stderr of inputs that fail
    #[arg(long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
    /// The suffix of results, if it isn't that of the inputs
    #[arg(long, value_name = "EXT", value_parser = suffix)]
    out_ext: Option<String>,
    /// Replace results that are there already
    #[arg(long)]
    overwrite: bool,
    /// How many inputs may run at once: a number, or auto for the machine's cores
    #[arg(short, long, value_name = "N", value_parser = jobs)]
    jobs: Option<String>,
    /// GPUs for each input: the first ones of the machine, or of CUDA_VISIBLE_DEVICES
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    gpus: Option<u16>,
    /// The time after which an input is ended: seconds, or as 5m or 2h
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    timeout: Option<u64>,
}

impl From<TryArguments> for TrialRequest {
    fn from(arguments: TryArguments) -> Self {
        Self {
            image: arguments.image,
            args: arguments.args,
            init_image: arguments.init_image,
            init_args: arguments.init_args,
            out: arguments.out,
            out_ext: arguments.out_ext,
            existing: if arguments.overwrite {
                ExistingResults::Overwrite
            } else {
                ExistingResults::Refuse
            },
            jobs: arguments.jobs,
            gpus: arguments.gpus,
            timeout_secs: arguments.timeout,
            inputs: arguments.inputs,
        }
    }
}

fn jobs(text: &str) -> Result<String, String> {
    let is_number = text.parse::<u16>().is_ok_and(|number| number > 0);
    (is_number || text == "auto")
        .then(|| text.to_owned())
        .ok_or_else(|| "expected a number from 1 on, or auto".to_owned())
}

fn seconds(text: &str) -> Result<u64, String> {
    let whole = text.parse().ok().or_else(|| config::time(text));
    whole
        .filter(|seconds| (1..=MOST_SECONDS).contains(seconds))
        .ok_or_else(|| "expected seconds, or a time like 90s, 5m or 2h".to_owned())
}

fn suffix(text: &str) -> Result<String, String> {
    let bare = text.trim_start_matches('.');
    (!bare.is_empty() && !bare.contains('/'))
        .then(|| text.to_owned())
        .ok_or_else(|| "expected a suffix like .json".to_owned())
}
