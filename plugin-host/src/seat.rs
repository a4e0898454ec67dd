//! Which instance of which plugin: what its directory, its sockets, its user and its control
//! group are named after. Pure.

/// The place of one instance on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The plugin's name.
    pub(crate) plugin: String,
    /// Counted from 1.
    pub(crate) number: u32,
    /// The group whose limits hold for it, beside its own.
    pub(crate) group: Option<String>,
}

impl Seat {
    /// Instance `number` of `plugin`.
    pub(crate) fn new(plugin: &str, number: u32, group: Option<&str>) -> Self {
        Self { plugin: plugin.into(), number, group: group.map(str::to_owned) }
    }

    /// The plugin's name for the first instance, `name.2` for the second. No plugin's name has a
    /// dot, so no two instances share one.
    pub(crate) fn key(&self) -> String {
        match self.number {
            1 => self.plugin.clone(),
            number => format!("{}.{number}", self.plugin),
        }
    }
}
