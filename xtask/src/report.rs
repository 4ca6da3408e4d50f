//! The JSON report of one boot of the image, put together from the lines on its console.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::qemu::Ending;

/// What starts a line for machines on the image's console; one JSON object follows.
pub(crate) const MARKER: &str = "@json ";

/// The steps that the image must have shown.
const REQUIRED_STEPS: [&str; 14] = [
    "bring-up",
    "translate",
    "remap",
    "blocked",
    "translation-off",
    "pass-through",
    "second-guest",
    "interleaved",
    "other-remaps",
    "other-off",
    "other-unbinds",
    "other-faults",
    "other-reset",
    "other-destroyed",
];

/// The steps with the devices of the image's hypervisor itself, on a machine that has them.
const OWN_DEVICE_STEPS: [&str; 7] = [
    "own-disks",
    OWN_INTERRUPTS,
    "own-foreign",
    "own-detached",
    "own-entropy",
    "own-network",
    "own-given-back",
];

/// The one of these that needs interrupt remapping (`ECAP.IR`).
const OWN_INTERRUPTS: &str = "own-interrupts";

/// The back ends there are.
const BACKENDS: [&str; 3] = ["nested", "shadow", "second-stage"];

/// The capability registers of a unit, as hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Capabilities {
    /// `CAP_REG`.
    pub(crate) cap: String,
    /// `ECAP_REG`.
    pub(crate) ecap: String,
}

/// One step of the image's proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Its name.
    pub(crate) name: String,
    /// Whether it held.
    pub(crate) ok: bool,
    /// Why the image could not run it on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
    /// What it measured.
    #[serde(default)]
    pub(crate) figures: Map<String, Value>,
}

/// One object on the console: exactly one of these.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    Unit(Capabilities),
    Shown(Capabilities),
    Backend(String),
    Step(Step),
    Totals(Map<String, Value>),
}

/// What one boot of the image showed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Whether everything held; settled by [`finish`](Self::finish).
    pub(crate) ok: bool,
    /// The back end that carried the guest.
    pub(crate) backend: Option<String>,
    /// The physical unit.
    pub(crate) unit: Option<Capabilities>,
    /// The virtual unit.
    pub(crate) shown: Option<Capabilities>,
    /// The steps, in order.
    pub(crate) steps: Vec<Step>,
    /// Counters over the whole run, if the image told any.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) totals: Map<String, Value>,
    /// What did not hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) why: Vec<String>,
}

/// What a console line turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Taken {
    /// Text for people.
    Text(String),
    /// A step; the report has it.
    Step(Step),
    /// Another object; the report has it.
    Merged,
}

impl Report {
    /// Takes one console line: merges an object, hands text back.
    ///
    /// A marked line that cannot be read is a failure of the run.
    pub(crate) fn take(&mut self, line: &str) -> Taken {
        let Some((before, object)) = line.split_once(MARKER) else {
            return Taken::Text(line.to_owned());
        };
        match serde_json::from_str(object.trim()) {
            Ok(Entry::Unit(unit)) => self.unit = Some(unit),
            Ok(Entry::Shown(shown)) => self.shown = Some(shown),
            Ok(Entry::Backend(backend)) => self.backend = Some(backend),
            Ok(Entry::Totals(totals)) => self.totals.extend(totals),
            Ok(Entry::Step(step)) => {
                self.steps.push(step.clone());
                return Taken::Step(step);
            }
            Err(error) => {
                self.why.push(format!("unreadable report line: {error}"));
                return Taken::Text(line.to_owned());
            }
        }
        if before.trim().is_empty() {
            Taken::Merged
        } else {
            Taken::Text(before.to_owned())
        }
    }

    /// Settles whether everything held.
    pub(crate) fn finish(&mut self, ending: &Ending) {
        self.why.extend(ending.why());
        for step in self.steps.iter().filter(|step| !step.ok) {
            self.why.push(format!("step `{}` failed", step.name));
        }
        for name in REQUIRED_STEPS {
            if !self.steps.iter().any(|step| step.name == name) {
                self.why.push(format!("step `{name}` was not seen"));
            }
        }
        match &self.backend {
            None => self.why.push("no back end was named".into()),
            Some(name) if !BACKENDS.contains(&name.as_str()) => {
                self.why.push(format!("unknown back end `{name}`"));
            }
            Some(_) => {}
        }
        for (capabilities, what) in [(&self.unit, "physical"), (&self.shown, "virtual")] {
            if capabilities.is_none() {
                self.why
                    .push(format!("the {what} unit's capabilities were not seen"));
            }
        }
        self.ok = self.why.is_empty();
    }

    /// The machine has the devices of the image's hypervisor: before [`finish`](Self::finish), notes each
    /// step with them that was not run.
    pub(crate) fn require_own_devices(&mut self) {
        for name in OWN_DEVICE_STEPS {
            let step = self.steps.iter().find(|step| step.name == name);
            let why = match step.map(|step| &step.skipped) {
                None => format!("step `{name}` was not seen"),
                Some(Some(_)) if name == OWN_INTERRUPTS && !self.unit_remaps_interrupts() => {
                    continue;
                }
                Some(Some(why)) => format!("step `{name}` was skipped: {why}"),
                Some(None) => continue,
            };
            self.why.push(why);
        }
    }

    fn unit_remaps_interrupts(&self) -> bool {
        let unit = self.unit.as_ref();
        let ecap = unit.and_then(|unit| unit.ecap.strip_prefix("0x"));
        let ecap = ecap.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        ecap.is_none_or(|ecap| ecap >> 3 & 1 == 1)
    }

    /// A report of a run that did not come to boot.
    pub(crate) fn failed(why: String) -> Self {
        Self {
            why: vec![why],
            ..Self::default()
        }
    }
}

/// Figures for people: `pages 64, bytes 524288`.
pub(crate) fn shown_figures(figures: &Map<String, Value>) -> String {
    figures
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// Writes a report as JSON.
pub(crate) fn write(path: &Path, report: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn complete() -> Report {
        let mut report = Report::default();
        for line in [
            r#"@json {"unit":{"cap":"0x1","ecap":"0x2"}}"#,
            r#"@json {"shown":{"cap":"0x3","ecap":"0x4"}}"#,
            r#"@json {"backend":"shadow"}"#,
        ] {
            assert_eq!(report.take(line), Taken::Merged);
        }
        for name in REQUIRED_STEPS {
            let line = format!(
                r#"@json {{"step":{{"name":"{name}","ok":true,"figures":{{"pages":64}}}}}}"#
            );
            assert!(matches!(report.take(&line), Taken::Step(step) if step.name == name));
        }
        report
    }

    #[test]
    fn a_complete_run_holds_and_has_the_documented_shape() {
        let mut report = complete();
        report.take(r#"@json {"totals":{"exits":3}}"#);
        report.finish(&Ending::Success);
        assert_eq!(report.why, [""; 0]);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["backend"], "shadow");
        assert_eq!(value["unit"], json!({"cap": "0x1", "ecap": "0x2"}));
        assert_eq!(value["shown"], json!({"cap": "0x3", "ecap": "0x4"}));
        assert_eq!(
            value["steps"][1],
            json!({"name": "translate", "ok": true, "figures": {"pages": 64}})
        );
        assert_eq!(value["totals"], json!({"exits": 3}));
        assert!(value.get("why").is_none());
    }

    #[test]
    fn text_is_handed_back_and_may_stand_before_an_object() {
        let mut report = Report::default();
        assert_eq!(report.take("hello"), Taken::Text("hello".into()));
        assert_eq!(report.take(""), Taken::Text(String::new()));
        assert_eq!(
            report.take(r#"x@json {"backend":"shadow"}"#),
            Taken::Text("x".into())
        );
        assert_eq!(report.backend.as_deref(), Some("shadow"));
    }

    #[test]
    fn each_thing_that_is_missing_or_wrong_fails_the_run() {
        type Change = fn(&mut Report);
        let changes: [(&str, Change); 9] = [
            ("no step", |r| r.steps.clear()),
            ("one step missing", |r| drop(r.steps.pop())),
            ("one step not ok", |r| r.steps[0].ok = false),
            ("no back end", |r| r.backend = None),
            ("unknown back end", |r| r.backend = Some("other".into())),
            ("no physical unit", |r| r.unit = None),
            ("no virtual unit", |r| r.shown = None),
            ("unreadable line", |r| {
                drop(r.take(r#"@json {"step":{"name":"#))
            }),
            ("unknown object", |r| drop(r.take(r#"@json {"other":1}"#))),
        ];
        for (name, change) in changes {
            let mut report = complete();
            change(&mut report);
            report.finish(&Ending::Success);
            assert!(!report.ok && !report.why.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_step_with_the_own_devices_is_not_missing_and_not_skipped_without_a_reason() {
        let skipped = r#""skipped":"none","#;
        // `ECAP.IR` is bit 3.
        for (ecap, name, how, holds) in [
            ("0x8", "own-disks", Some(""), true),
            ("0x8", "own-disks", Some(skipped), false),
            ("0x8", "own-disks", None, false),
            ("0x8", "own-interrupts", Some(skipped), false),
            ("0x0", "own-interrupts", Some(skipped), true),
            ("0x0", "own-network", Some(skipped), false),
        ] {
            let mut report = complete();
            report.take(&format!(
                r#"@json {{"unit":{{"cap":"0x1","ecap":"{ecap}"}}}}"#
            ));
            for step in OWN_DEVICE_STEPS {
                let how = if step == name { how } else { Some("") };
                let Some(how) = how else { continue };
                let line = format!(
                    r#"@json {{"step":{{"name":"{step}","ok":true,{how}"figures":{{}}}}}}"#
                );
                assert!(matches!(report.take(&line), Taken::Step(_)), "{line}");
            }
            report.require_own_devices();
            report.finish(&Ending::Success);
            assert_eq!(report.ok, holds, "{ecap} {name} {how:?}: {:?}", report.why);
        }
    }

    #[test]
    fn a_machine_that_ends_otherwise_fails_the_run() {
        for ending in [
            Ending::Failure("x".into()),
            Ending::TimedOut(std::time::Duration::from_secs(1)),
        ] {
            let mut report = complete();
            report.finish(&ending);
            assert!(!report.ok, "{ending:?}");
        }
    }
}
