//! Where a node keeps its data and its sockets: one rule, shared with the node by being written
//! down here and mirrored there.
//!
//! - data directory: `--data-dir`, else `$BH_DATA_DIR`, else `$XDG_DATA_HOME/blackhole`, else
//!   `$HOME/.local/share/blackhole`, else `/var/lib/blackhole` (a service without a home);
//! - run directory: `--run-dir`, else `$BH_RUN_DIR`, else `<data directory>/run`;
//! - admin socket: `--admin`, else `<run directory>/admin.sock`.
//!
//! Empty variables count as unset, and so does an `$XDG_DATA_HOME` that is not absolute (the XDG
//! base directory specification asks for that).

use std::{ffi::OsString, path::PathBuf};

/// The admin socket's name in the run directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// The data directory of a node that has neither variable nor home.
const SERVICE_DATA_DIR: &str = "/var/lib/blackhole";

/// Where a node's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Identity and store.
    pub data_dir: PathBuf,
    /// Sockets and locks.
    pub run_dir: PathBuf,
    /// The socket on which the node takes orders.
    pub admin_socket: PathBuf,
}

/// What the command line says about places; `None` where it says nothing.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--run-dir`
    pub run_dir: Option<PathBuf>,
    /// `--admin`
    pub admin: Option<PathBuf>,
}

impl Places {
    /// Applies the rule; `variable` looks up an environment variable.
    pub fn find(wishes: &Wishes, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data_dir = wishes
            .data_dir
            .clone()
            .or_else(|| path("BH_DATA_DIR"))
            .or_else(|| {
                let home = path("XDG_DATA_HOME").filter(|dir| dir.is_absolute());
                home.map(|dir| dir.join("blackhole"))
            })
            .or_else(|| path("HOME").map(|dir| dir.join(".local/share/blackhole")))
            .unwrap_or_else(|| PathBuf::from(SERVICE_DATA_DIR));
        let run_dir = wishes
            .run_dir
            .clone()
            .or_else(|| path("BH_RUN_DIR"))
            .unwrap_or_else(|| data_dir.join("run"));
        let admin_socket = wishes.admin.clone().unwrap_or_else(|| run_dir.join(ADMIN_SOCKET));
        Self { data_dir, run_dir, admin_socket }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(wishes: &Wishes, variables: &[(&str, &str)]) -> Places {
        Places::find(wishes, |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn a_user_without_settings_gets_the_xdg_directory() {
        let places = find(&Wishes::default(), &[("HOME", "/home/ada")]);
        assert_eq!(places.data_dir, PathBuf::from("/home/ada/.local/share/blackhole"));
        let socket = PathBuf::from("/home/ada/.local/share/blackhole/run/admin.sock");
        assert_eq!(places.admin_socket, socket);
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_variable_over_the_home() {
        let variables = [
            ("HOME", "/home/ada"),
            ("XDG_DATA_HOME", "/x"),
            ("BH_DATA_DIR", "/d"),
            ("BH_RUN_DIR", "/r"),
        ];
        let by_variable = find(&Wishes::default(), &variables);
        assert_eq!(by_variable.data_dir, PathBuf::from("/d"));
        assert_eq!(by_variable.admin_socket, PathBuf::from("/r/admin.sock"));
        let wishes = Wishes { run_dir: Some("/flag".into()), ..Wishes::default() };
        assert_eq!(find(&wishes, &variables).admin_socket, PathBuf::from("/flag/admin.sock"));
        let wishes = Wishes { admin: Some("/a.sock".into()), ..Wishes::default() };
        assert_eq!(find(&wishes, &variables).admin_socket, PathBuf::from("/a.sock"));
    }

    #[test]
    fn empty_and_relative_variables_count_as_unset() {
        let variables = [("HOME", ""), ("XDG_DATA_HOME", "relative"), ("BH_DATA_DIR", "")];
        let places = find(&Wishes::default(), &variables);
        assert_eq!(places.data_dir, PathBuf::from("/var/lib/blackhole"));
    }
}
