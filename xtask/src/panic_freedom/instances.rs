//! The table of concrete types for generic parameters (`tests/panic_freedom/instances.toml`).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// One value or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn to_vec(&self) -> Vec<String> {
        match self {
            Self::One(value) => vec![value.clone()],
            Self::More(values) => values.clone(),
        }
    }
}

/// The table as read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Instances {
    /// Modules whose public functions are kept.
    pub(super) modules: Vec<String>,
    /// Values of const generic parameters.
    pub(super) capacities: Vec<u64>,
    /// Item-position macros that define no public function.
    #[serde(default)]
    pub(super) macros: Vec<String>,
    #[serde(default)]
    parameters: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    bounds: BTreeMap<String, OneOrMore>,
}

impl Instances {
    /// Reads the table.
    pub(super) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("instances.toml")
    }

    /// The same table with one capacity.
    pub(super) fn of_capacity(&self, capacity: u64) -> Self {
        Self {
            capacities: vec![capacity],
            ..self.clone()
        }
    }

    /// The values of a parameter: by the most specific name, else by one of its traits.
    pub(super) fn values(
        &self,
        owner: Option<&str>,
        function: Option<&str>,
        parameter: &str,
        bounds: &[String],
    ) -> Option<Vec<String>> {
        let mut keys = Vec::new();
        if let (Some(owner), Some(function)) = (owner, function) {
            keys.push(format!("{owner}::{function}.{parameter}"));
        }
        keys.extend(owner.map(|owner| format!("{owner}.{parameter}")));
        keys.extend(function.map(|function| format!("{function}.{parameter}")));
        keys.push(parameter.to_owned());
        keys.iter()
            .find_map(|key| self.parameters.get(key))
            .or_else(|| bounds.iter().find_map(|bound| self.bounds.get(bound)))
            .map(OneOrMore::to_vec)
    }

    /// The types that stand for an implementation of a trait.
    pub(super) fn implementations(&self, name: &str) -> Vec<String> {
        self.bounds
            .get(name)
            .map(OneOrMore::to_vec)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_name_wins_and_bounds_come_last() {
        let instances = Instances::parse(
            "modules = []\ncapacities = [1]\n[parameters]\nH = 'any'\n'Ring.H' = 'ring'\n'Ring::push.H' = 'push'\n'free.H' = ['a', 'b']\n[bounds]\nMemory = 'memory'\n",
        )
        .unwrap();
        let memory = ["Memory".to_owned()];
        for (owner, function, parameter, expected) in [
            (Some("Ring"), Some("push"), "H", Some(vec!["push"])),
            (Some("Ring"), Some("pop"), "H", Some(vec!["ring"])),
            (None, Some("free"), "H", Some(vec!["a", "b"])),
            (Some("Other"), Some("pop"), "H", Some(vec!["any"])),
            (None, None, "X", Some(vec!["memory"])),
        ] {
            let values = instances.values(owner, function, parameter, &memory);
            assert_eq!(
                values,
                expected.map(|v| v.into_iter().map(str::to_owned).collect())
            );
        }
        assert_eq!(instances.values(None, None, "X", &[]), None);
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(Instances::parse("modules = []\ncapacities = []\nboundz = 1\n").is_err());
    }
}
