//! The report as metrics, in Prometheus' text format.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

pub use prometheus_text::CONTENT_TYPE;

use super::Report;
use crate::engine::Condition;

/// What all names begin with.
const PREFIX: &str = "vfio_user_tpm";

/// The report as metrics.
#[must_use]
pub(super) fn text(report: Report) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(report));
    let mut text = String::new();
    // It fails only where the writer does, which a string does not.
    let _: fmt::Result = prometheus_text::encode(&mut text, &registry);
    text
}

/// Writes metrics one after the other.
struct Metrics<'a>(DescriptorEncoder<'a>);

impl Metrics<'_> {
    fn family(&mut self, name: &str, help: &str, unit: Option<&Unit>, of: MetricType, each: Each<'_>) -> fmt::Result {
        each(&mut self.0.encode_descriptor(name, help, unit, of)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> fmt::Result {
        self.family(name, help, None, MetricType::Gauge, &mut |metric| metric.encode_gauge(value))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, &mut |metric| count(metric, &value))
    }

    fn counters<'n>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'n str, u64)>,
    ) -> fmt::Result {
        let mut values = values.into_iter();
        self.family(name, help, None, MetricType::Counter, &mut |metric| {
            values.by_ref().try_for_each(|(name, value)| count(&mut metric.encode_family(&[(label, name)])?, &value))
        })
    }
}

type Each<'a> = &'a mut dyn FnMut(&mut MetricEncoder<'_>) -> fmt::Result;

fn count(metric: &mut MetricEncoder<'_>, value: &impl EncodeCounterValue) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, f64>(value, None)
}

impl Collector for Report {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self { format: _, program, tpm, device, client, connections, accesses, commands } = self;
        let mut metrics = Metrics(encoder);
        metrics.family("build", "The server and its TPM", None, MetricType::Info, &mut |metric| {
            metric.encode_info(&[
                ("version", program.version.as_str()),
                ("tpm_version", &tpm.version),
                ("backend", &tpm.backend),
                ("interface", &device.interface),
            ])
        })?;
        #[expect(clippy::cast_precision_loss, reason = "seconds, of which a float holds as many as there will be")]
        let started = program.started as f64;
        metrics.gauge("start_time_seconds", "When the server was started, since 1970-01-01 UTC", &started)?;
        metrics.gauge("works", "Whether the TPM takes commands", &u32::from(tpm.works))?;
        metrics.family(
            "condition",
            "1 for how the TPM is, 0 for the others",
            None,
            MetricType::Gauge,
            &mut |metric| {
                Condition::ALL.iter().try_for_each(|condition| {
                    let is_so = u32::from(condition.name() == tpm.condition);
                    metric.encode_family(&[("condition", condition.name())])?.encode_gauge(&is_so)
                })
            },
        )?;
        metrics.counter("starts", "How often the TPM was brought up", tpm.starts)?;
        metrics.counter("failures", "How often the TPM went into failure mode", tpm.failures)?;
        metrics.counter("process_starts", "How often a process was started for the TPM", tpm.process_starts)?;
        metrics.counter("resets", "Resets of the device", device.resets)?;
        metrics.gauge("client_connected", "Whether a client is connected", &u32::from(client.is_some()))?;
        let outcomes = [("served", connections.made), ("refused", connections.refused)];
        metrics.counters("connections", "Clients that have connected", "outcome", outcomes)?;
        let kinds = [("read", accesses.reads), ("write", accesses.writes), ("configuration", accesses.configuration)];
        metrics.counters("accesses", "Accesses to BAR0 and to configuration space", "kind", kinds)?;
        metrics.counter("held_answers", "Answers held back until a command had ended", accesses.held_answers)?;
        let by_command = || commands.by_command.iter();
        let answered = by_command().map(|tally| (tally.command.as_str(), tally.answered));
        metrics.counters("commands", "The guest's commands that were answered", "command", answered)?;
        let errors = by_command().map(|tally| (tally.command.as_str(), tally.errors));
        metrics.counters("command_errors", "Those of them whose response code was not 0", "command", errors)?;
        metrics.family("command_time", "What they took", Some(&Unit::Seconds), MetricType::Counter, &mut |metric| {
            by_command().try_for_each(|tally| {
                count(&mut metric.encode_family(&[("command", tally.command.as_str())])?, &tally.seconds)
            })
        })?;
        let classes = commands.by_error.iter().map(|tally| (tally.class.as_str(), tally.errors));
        metrics.counters("errors", "Responses whose code was not 0, by what kind of error it is", "class", classes)?;
        metrics.counter("commands_cancelled", "Commands that the guest has cancelled", commands.cancelled)?;
        metrics.counter("commands_abandoned", "Commands that a reset has ended", commands.abandoned)?;
        let latency = &commands.latency;
        let buckets = latency.buckets.iter().map(|bucket| (bucket.at_most_seconds, bucket.commands));
        let buckets: Vec<_> = buckets.chain([(f64::INFINITY, latency.above)]).collect();
        metrics.family(
            "command_duration",
            "From the guest's start of a command to its response",
            Some(&Unit::Seconds),
            MetricType::Histogram,
            &mut |metric| metric.encode_histogram::<NoLabelSet>(latency.sum_seconds, commands.answered, &buckets, None),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn the_metrics_have_the_names_that_are_documented() {
        let text = text(example());
        let document = include_str!("../../docs/control.md");
        let mut names = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            assert!(document.contains(&format!("| `{name}` |")), "docs/control.md does not tell of {name}");
            names += 1;
        }
        assert_eq!(names, document.matches("| `vfio_user_tpm_").count(), "{text}");
    }

    #[test]
    fn values_are_those_of_the_report() {
        let text = text(example());
        for line in [
            r#"vfio_user_tpm_build_info{version="1.2.3",tpm_version="2.0",backend="swtpm",interface="crb"} 1"#,
            "vfio_user_tpm_works 0",
            r#"vfio_user_tpm_condition{condition="failed"} 1"#,
            r#"vfio_user_tpm_condition{condition="up"} 0"#,
            r#"vfio_user_tpm_commands_total{command="TPM2_GetRandom"} 4"#,
            r#"vfio_user_tpm_command_time_seconds_total{command="TPM2_CreatePrimary"} 30.5"#,
            r#"vfio_user_tpm_errors_total{class="lockout"} 1"#,
            r#"vfio_user_tpm_command_duration_seconds_bucket{le="0.0005"} 4"#,
            r#"vfio_user_tpm_command_duration_seconds_bucket{le="+Inf"} 7"#,
            "vfio_user_tpm_command_duration_seconds_count 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
    }
}
