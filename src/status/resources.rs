//! What there is to ask a control socket for.

use super::{About, Report, metrics};
use crate::control::{Answer, Outcome};
use crate::device::TpmDevice;
use crate::vfio_user::Connections;

/// The answer at a path; `None` where there is nothing.
#[must_use]
pub fn answer(about: &About, path: &str, device: &TpmDevice, connections: &Connections) -> Option<Answer> {
    match path {
        "/status" => Some(json(&Report::new(about, device, connections))),
        "/metrics" => Some(Answer {
            outcome: Outcome::Ok,
            content_type: metrics::CONTENT_TYPE,
            body: metrics::text(Report::new(about, device, connections)),
        }),
        "/health" => Some(health(device)),
        _ => None,
    }
}

fn json(report: &Report) -> Answer {
    // Nothing in it can fail to become JSON.
    let body = serde_json::to_string(report).unwrap_or_default();
    Answer { outcome: Outcome::Ok, content_type: "application/json", body: format!("{body}\n") }
}

/// Asked often, so that it makes no report.
fn health(device: &TpmDevice) -> Answer {
    let condition = device.engine().condition();
    let outcome = if condition.works() { Outcome::Ok } else { Outcome::ServiceUnavailable };
    Answer::line(outcome, condition.name())
}
