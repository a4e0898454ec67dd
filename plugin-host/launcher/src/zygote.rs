//! The zygote: forks a launcher for each plugin, so that a start costs a fork of this small
//! process and not an exec of a large one.
//!
//! It holds nothing of any plugin: the control socket that comes with an order goes to the fork.
//! What it forks are children of the host, not its own, so its end, also by `kill -9`, touches
//! none of them; the host starts another for the next plugin.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    process::ExitCode,
};

use rustix::net::{RecvFlags, SendFlags};

use crate::{
    control::{self, ORDER_BYTES_MAX, Order},
    jail::{self, Layer, Refusal},
    sys::{self, Fork},
};

/// Obeys the host until it is gone. `first` came with the order that made this the zygote.
pub(crate) fn serve(orders: OwnedFd, first: Vec<OwnedFd>) -> ExitCode {
    if let Err(refusal) = settle(&orders) {
        for control in first {
            tell(&control, refusal.clone());
        }
        return ExitCode::FAILURE;
    }
    let mut orders = Some(orders);
    let mut came = first;
    while let Some(socket) = &orders {
        for control in came.drain(..) {
            match sys::clone_into(0, true, None) {
                Ok(Fork::Child) => {
                    // Or the host would not see the end of the zygote.
                    drop(orders.take());
                    sys::exit_now(launch(control));
                }
                Ok(Fork::Parent(_)) => {}
                Err(error) => tell(&control, Refusal::new("launcher", format!("fork: {error}"))),
            }
        }
        let mut bytes = [0; ORDER_BYTES_MAX];
        match control::recv_into::<Order>(socket, &mut bytes, RecvFlags::empty()) {
            Ok(Some(received)) if received.message == Order::Fork => came = received.descriptors,
            // The host is gone, or speaks another language.
            Ok(Some(_) | None) | Err(_) => break,
        }
    }
    ExitCode::SUCCESS
}

/// Away from the terminal, whose Ctrl-C is for the node, and tied to the host.
fn settle(orders: &OwnedFd) -> Result<(), Refusal> {
    rustix::process::setsid().layer("session", "setsid")?;
    jail::die_with_the_host(orders)
}

/// The fork: the launcher of one jail.
fn launch(low: OwnedFd) -> i32 {
    let Ok(control) = sys::adopt(low.as_raw_fd()) else { return 1 };
    drop(low);
    let order = control::recv::<Order>(&control, RecvFlags::empty());
    match order.map(|order| order.map(|order| (order.message, order.descriptors))) {
        Ok(Some((Order::Launch(spec), descriptors))) => {
            i32::from(jail::launch(&control, *spec, descriptors) != ExitCode::SUCCESS)
        }
        // The host gave up.
        _ => 1,
    }
}

fn tell(control: &OwnedFd, refusal: Refusal) {
    // A host that is gone needs no reason.
    let _ = control::send(control, &refusal.report(), None, SendFlags::empty());
}
