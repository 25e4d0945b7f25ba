//! Which form an `Accept` header asks for.

use super::MetricsForm;

pub(super) fn preferred(accept: &str) -> MetricsForm {
    let (mut open, mut plain) = (0_u16, 0_u16);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut quality, mut version) = (1000, None);
        for parameter in parts {
            let Some((name, value)) = parameter.split_once('=') else { continue };
            match name.trim() {
                name if name.eq_ignore_ascii_case("q") => quality = thousandths(value.trim()),
                name if name.eq_ignore_ascii_case("version") => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        if kind.eq_ignore_ascii_case("application/openmetrics-text") && matches!(version, None | Some("1.0.0")) {
            open = open.max(quality);
        } else if kind.eq_ignore_ascii_case("text/plain") && matches!(version, None | Some("0.0.4")) {
            plain = plain.max(quality);
        }
    }
    if open > 0 && open >= plain { MetricsForm::OpenMetrics } else { MetricsForm::Prometheus }
}

/// A quality value; one that is none counts as not acceptable.
fn thousandths(value: &str) -> u16 {
    match value.parse::<f32>() {
        Ok(quality) if (0.0..=1.0).contains(&quality) => (quality * 1000.0).round() as u16,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scrapers_send() {
        let open = [
            // Prometheus 2.42 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text",
            "APPLICATION/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=0.001",
            "application/openmetrics-text, text/plain",
        ];
        for accept in open {
            assert_eq!(preferred(accept), MetricsForm::OpenMetrics, "{accept}");
        }
        let plain = [
            "",
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4",
            // A form of OpenMetrics that is not written.
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=nan",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=0.4,text/plain;q=0.5",
            ";;;=,=;q",
        ];
        for accept in plain {
            assert_eq!(preferred(accept), MetricsForm::Prometheus, "{accept}");
        }
    }
}
