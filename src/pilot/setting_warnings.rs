//! Warnings about settings that are odd but not wrong: the parser's own, and words that only look like
//! placeholders.

use crate::config::variables::{INIT_ARGS, TASK_ARGS, Variable};
use crate::config::{Config, ContainerConfig};
use crate::container::{OddPlaceholder, odd_placeholders};
use crate::fault::ContainerRole;

/// One text for each warning, for the log and for `ewms-pilot check`.
#[must_use]
pub fn setting_warnings(config: &Config) -> Vec<String> {
    let mut warnings = [&config.warnings[..], &config.token_warnings].concat();
    warnings.extend(of_container(&config.task, &TASK_ARGS, ContainerRole::Task));
    if let Some(init) = &config.init {
        warnings.extend(of_container(init, &INIT_ARGS, ContainerRole::Init));
    }
    warnings
}

fn of_container(
    container: &ContainerConfig,
    variable: &Variable,
    role: ContainerRole,
) -> impl Iterator<Item = String> {
    let name = variable.name;
    odd_placeholders(&container.args, role)
        .into_iter()
        .map(move |odd| match odd {
            OddPlaceholder::Misspelt { written, meant } => format!(
                "`{written}` in `{name}` is no placeholder and stays as it is; is `{{{{{meant}}}}}` meant?"
            ),
            OddPlaceholder::OfTasks { written } => format!(
                "`{written}` in `{name}` stays as it is, because an init container works on no event; is \
                 `{{{{DATA_HUB}}}}` meant?"
            ),
        })
}
