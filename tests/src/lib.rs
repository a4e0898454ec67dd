//! Assertions, not worlds: what is asserted about lives in `testnet`.
//!
//! | Folder | What its tests claim |
//! |---|---|
//! | `contract/` | the repository keeps its own rules: map, dependency graph, style, promises |
//! | `sim/` | the deciders keep their invariants in thousands of seeded worlds |
//! | `e2e/` | real processes do what the README says, and refuse what it says they refuse |
//! | `hostile/` | whoever speaks nonsense, or too much, harms nobody but himself |
//! | `fixtures/` | programs that nobody here changed: servers and clients in Python and Go |

#![forbid(unsafe_code)]
