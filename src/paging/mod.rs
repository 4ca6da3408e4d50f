//! Page tables: the second-stage tables the library builds, and read-only walks of any table.

pub mod second_stage;
pub mod walk;

pub use second_stage::{
    AccessedDirty, ConfigError, InputAddress, Leaf, MapError, OnPartialLeaf, Rights, SecondStage,
    SecondStageConfig, StaleMappings,
};
