//! The launcher as an executable of its own: what tests use, and what packages may ship instead
//! of starting the whole node's executable a second time.

fn main() -> std::process::ExitCode {
    blackhole_launcher::run()
}
