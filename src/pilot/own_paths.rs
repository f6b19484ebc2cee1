//! Lists the pilot's own paths on the execution point, from the settings and HTCondor's variables.
//! `task::own_files` hides them from tasks. Status files are recognised by their names instead, see `status`.

use std::path::Path;

use super::dead_letter::REJECTED_DIR;
use crate::config::{BrokerConfig, Config, TokenFile};
use crate::task::own_files::{OwnPath, Privacy};
use crate::task::staging::{DATA_DIR, SCRATCH_DIR};

/// Results that could not be sent, for the next pilot.
pub(super) const UNSENT_DIR: &str = "unsent";

/// All own paths. Of several that a directory shows only the first is reported, so directories that hold
/// others come first.
pub(super) fn own_paths(config: &Config) -> Vec<OwnPath> {
    let mut own = OwnPathList::default();
    let condor = &config.condor;
    let parent = &config.data_parent;
    own.add(Privacy::Home, "the pilot's working directory", &config.cwd);
    own.add(Privacy::Home, "the pilot's data", parent);
    own.extend(
        Privacy::Home,
        "the job's scratch directory",
        &condor.scratch,
    );
    for queue in config.incoming.iter().chain(&config.outgoing) {
        match &queue.broker {
            BrokerConfig::RabbitMq(address) => {
                let file = address.token_file.as_ref().map(TokenFile::path);
                own.extend(Privacy::Secret, "a queue's token file", file);
            }
            BrokerConfig::Spool(directory) => own.add(Privacy::Store, "a spool", directory),
        }
    }
    own.extend(Privacy::Secret, "a credential of the job", &condor.secrets);
    own.extend(Privacy::Secret, "the env file", &config.env_files);
    for (what, name) in [
        ("the pilot's data", DATA_DIR),
        ("the pilot's scratch", SCRATCH_DIR),
        ("results to be sent", UNSENT_DIR),
        ("rejected events", REJECTED_DIR),
    ] {
        own.add(Privacy::Store, what, parent.join(name));
    }
    own.extend(Privacy::Secret, "a file of HTCondor's", &condor.papers);
    own.extend(
        Privacy::Secret,
        "the chirp configuration",
        &condor.chirp_file,
    );

    own.extend(Privacy::NoInput, "the task log", &config.task_log);
    own.extend(Privacy::NoInput, "the CA certificates", &config.ca_file);
    // The program under any name, the log, and the directories in the scratch directory that HTCondor mounts
    // as the job's /tmp.
    for path in [
        "/proc/self/exe",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "/tmp",
        "/var/tmp",
    ] {
        own.add(Privacy::NoInput, "the pilot's own", path);
    }
    own.0
}

#[derive(Default)]
struct OwnPathList(Vec<OwnPath>);

impl OwnPathList {
    fn add(&mut self, privacy: Privacy, what: &'static str, path: impl AsRef<Path>) {
        self.0.push(OwnPath {
            path: path.as_ref().to_owned(),
            what,
            privacy,
        });
    }

    fn extend<P: AsRef<Path>>(
        &mut self,
        privacy: Privacy,
        what: &'static str,
        paths: impl IntoIterator<Item = P>,
    ) {
        for path in paths {
            self.add(privacy, what, path);
        }
    }
}
