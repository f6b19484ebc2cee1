//! Integration tests: one binary, a module a topic. They drive the real pilot with the real Apptainer
//! and RabbitMQ in the throw-away execution point; `scripts/test` builds it and runs them there.

mod harness;
mod layers;
mod support;
