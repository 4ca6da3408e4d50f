//! One bare-metal ELF that keeps every public function of the library's upper layers.
//!
//! `cargo xtask test` generates the list of functions from the library's sources and builds this
//! package for `x86_64-unknown-none`. The panic handler calls a function that does not exist, so
//! the ELF links only if the optimizer has proved that no kept function reaches a panic. It is
//! never run.
//!
//! Formatting does not stand in the way, with few exceptions. Without a panic are `{}` and `{:x}`
//! of integers (also `{:#x}`, `{:02x}`), `{}` of strings, and derived `Debug`. Not so, and
//! therefore not for the library's own messages: `{:?}` of a string or character, a width or
//! precision given at run time, and derived `Debug` of more than five fields.
//!
//! On the host it is an empty program.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod environment;
#[cfg(target_os = "none")]
mod image;

#[cfg(not(target_os = "none"))]
fn main() {}
