//! The text forms: Prometheus' (version 0.0.4) and OpenMetrics 1.0, which has exemplars.

use std::fmt::Write;

use super::{Durations, Exemplar, Families, Family, Kind, Label, LabelValue, Value};

/// A text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Prometheus' own.
    Prometheus,
    /// OpenMetrics.
    OpenMetrics,
}

impl Form {
    /// What who sends this `Accept` is given: OpenMetrics where it is named and not worth less
    /// than Prometheus' own form, as scrapers do that can read both.
    pub fn accepted(accept: Option<&str>) -> Self {
        let quality = |wanted: &str| {
            let ranges = accept.unwrap_or_default().split(',');
            let of = ranges.filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let found = parts.next()?.eq_ignore_ascii_case(wanted);
                let weight = parts.find_map(|part| part.strip_prefix("q="));
                let weight = weight.map_or(Some(1.0), |text| text.parse::<f64>().ok());
                weight.filter(|_| found)
            });
            of.fold(0.0, f64::max)
        };
        let open = quality("application/openmetrics-text");
        match open > 0.0 && open >= quality("text/plain") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Its media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Families {
    /// The text of all of them.
    pub fn text(&self, form: Form) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for family in self.iter() {
            head(family, form, &mut out);
            for point in &family.points {
                let labels = labels(&point.labels);
                let _ = match &point.value {
                    Value::Count(count) => sample(&mut out, family.name, &labels, count),
                    Value::Level(level) => sample(&mut out, family.name, &labels, level),
                    Value::Durations(durations) => {
                        histogram(durations, (family.name, &labels), form, &mut out)
                    }
                };
            }
        }
        if form == Form::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }
}

fn head(family: &Family, form: Form, out: &mut String) {
    let (kind, is_counter) = match family.kind {
        Kind::Counter => ("counter", true),
        Kind::Gauge => ("gauge", false),
        Kind::Histogram => ("histogram", false),
    };
    // In OpenMetrics a counter's family is named without what its samples end in.
    let name = match form == Form::OpenMetrics && is_counter {
        true => family.name.strip_suffix("_total").unwrap_or(family.name),
        false => family.name,
    };
    let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    let unit = match family.unit() {
        "s" => "seconds",
        "By" => "bytes",
        _ => return,
    };
    if form == Form::OpenMetrics && name.ends_with(unit) {
        let _ = writeln!(out, "# UNIT {name} {unit}");
    }
}

/// Labels as they stand between the braces.
fn labels(labels: &[Label]) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(name.chars().map(|c| if c == '.' { '_' } else { c }));
        let _ = match value {
            LabelValue::Number(number) => write!(out, "=\"{number}\""),
            LabelValue::Flag(flag) => write!(out, "=\"{flag}\""),
            LabelValue::Text(text) => {
                out.push_str("=\"");
                for character in text.chars() {
                    match character {
                        '\\' => out.push_str("\\\\"),
                        '"' => out.push_str("\\\""),
                        '\n' => out.push_str("\\n"),
                        other => out.push(other),
                    }
                }
                out.push('"');
                Ok(())
            }
        };
    }
    out
}

fn sample(
    out: &mut String,
    name: &str,
    labels: &str,
    value: impl std::fmt::Display,
) -> std::fmt::Result {
    match labels.is_empty() {
        true => writeln!(out, "{name} {value}"),
        false => writeln!(out, "{name}{{{labels}}} {value}"),
    }
}

fn histogram(
    durations: &Durations,
    (name, labels): (&str, &str),
    form: Form,
    out: &mut String,
) -> std::fmt::Result {
    let comma = if labels.is_empty() { "" } else { "," };
    let (mut count, mut below) = (0, 0);
    for (at, bucket) in durations.counts.iter().enumerate() {
        count += bucket;
        let bound = durations.bounds_us.get(at).copied();
        match bound {
            Some(us) => {
                let le = seconds(us);
                write!(out, "{name}_bucket{{{labels}{comma}le=\"{le}\"}} {count}")?;
            }
            None => write!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}")?,
        }
        let within = below..=bound.unwrap_or(u64::MAX);
        let mut exemplars = durations.exemplars.iter();
        if form == Form::OpenMetrics
            && let Some(found) = exemplars.find(|one| within.contains(&one.value_us))
        {
            exemplar(found, out)?;
        }
        out.push('\n');
        below = bound.map_or(u64::MAX, |us| us + 1);
    }
    sample(
        out,
        &format!("{name}_sum"),
        labels,
        seconds(durations.sum_us),
    )?;
    sample(out, &format!("{name}_count"), labels, count)
}

fn exemplar(exemplar: &Exemplar, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        " # {{trace_id=\"{:032x}\",span_id=\"{:016x}\"}} {} {}",
        exemplar.trace_id,
        exemplar.span_id,
        seconds(exemplar.value_us),
        exemplar.at_ms as f64 / 1e3,
    )
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_given_to_who_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, form) in [
            (None, Form::Prometheus),
            (Some("*/*"), Form::Prometheus),
            (Some("text/plain"), Form::Prometheus),
            (Some("application/openmetrics-text"), Form::OpenMetrics),
            (Some("application/openmetrics-text;q=0"), Form::Prometheus),
            (Some("application/openmetrics-text;q=x"), Form::Prometheus),
            (
                Some("text/plain, application/openmetrics-text;q=0.9"),
                Form::Prometheus,
            ),
            (Some(prometheus), Form::OpenMetrics),
        ] {
            assert_eq!(Form::accepted(accept), form, "{accept:?}");
        }
    }

    fn families() -> Families {
        let mut families = Families::default();
        let asked = families.counter("asked_total", "How\noften.");
        asked.with([("who.asks", "a\\\"b\n".to_owned().into())], 3);
        families.gauge("size_bytes", "How large.").is(1.5);
        let durations = Durations {
            bounds_us: &[1_000, 2_000],
            counts: vec![1, 0, 2],
            sum_us: 7_500,
            exemplars: vec![Exemplar {
                value_us: 2_001,
                at_ms: 1_700_000_000_250,
                trace_id: 10,
                span_id: 11,
            }],
        };
        let took = families.histogram("took_seconds", "How long.");
        took.with([("status", 200_u16.into())], durations);
        families
    }

    #[test]
    fn the_form_of_prometheus() {
        let expected = "\
# HELP asked_total How\\noften.
# TYPE asked_total counter
asked_total{who_asks=\"a\\\\\\\"b\\n\"} 3
# HELP size_bytes How large.
# TYPE size_bytes gauge
size_bytes 1.5
# HELP took_seconds How long.
# TYPE took_seconds histogram
took_seconds_bucket{status=\"200\",le=\"0.001\"} 1
took_seconds_bucket{status=\"200\",le=\"0.002\"} 1
took_seconds_bucket{status=\"200\",le=\"+Inf\"} 3
took_seconds_sum{status=\"200\"} 0.0075
took_seconds_count{status=\"200\"} 3
";
        assert_eq!(families().text(Form::Prometheus), expected);
    }

    #[test]
    fn the_form_of_openmetrics() {
        let expected = "\
# HELP asked How\\noften.
# TYPE asked counter
asked_total{who_asks=\"a\\\\\\\"b\\n\"} 3
# HELP size_bytes How large.
# TYPE size_bytes gauge
# UNIT size_bytes bytes
size_bytes 1.5
# HELP took_seconds How long.
# TYPE took_seconds histogram
# UNIT took_seconds seconds
took_seconds_bucket{status=\"200\",le=\"0.001\"} 1
took_seconds_bucket{status=\"200\",le=\"0.002\"} 1
took_seconds_bucket{status=\"200\",le=\"+Inf\"} 3 # \
{trace_id=\"0000000000000000000000000000000a\",span_id=\"000000000000000b\"} 0.002001 1700000000.25
took_seconds_sum{status=\"200\"} 0.0075
took_seconds_count{status=\"200\"} 3
# EOF
";
        assert_eq!(families().text(Form::OpenMetrics), expected);
    }
}
