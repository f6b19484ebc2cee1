//! Integration tests: one binary, a module a topic. They drive the real pilot with the real Apptainer
//! and RabbitMQ in the throw-away execution point; `scripts/test` builds it and runs them there.

mod chaos;
mod configuration;
mod configuration_binds;
mod configuration_envfile;
mod containers;
mod documents;
mod events;
mod events_failures;
mod events_fidelity;
mod events_intake;
mod faults;
mod faults_site;
mod guards;
mod harness;
mod images;
mod images_conversion;
mod layers;
mod memory;
mod outages;
mod poison;
mod pool;
mod preflight;
mod quarantine;
mod rabbitmq_lost;
mod rabbitmq_refused;
mod records;
mod spool;
mod spool_shared;
mod statistics;
mod support;
mod survival;
mod survival_signals;
mod telemetry;
mod telemetry_terminal;
mod wall_time;
