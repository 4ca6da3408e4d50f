//! The concrete types that `instances.toml` gives for generic parameters.
//!
//! They implement the library's seams with values that the optimizer cannot know: every read
//! passes through [`unknown`], so no branch of the library is folded away.

use core::hint::black_box;

/// A value that the optimizer takes for any value of its type.
#[allow(dead_code, reason = "used by the seams below as they are added")]
fn unknown<T>(value: T) -> T {
    black_box(value)
}
