//! The system calls that have no safe form. Every block says why it is there and why it is sound.
//! Nothing else in the workspace may contain `unsafe`.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::process::Pid;

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The one that called, with the new process.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Source: clone(2). The C library's constant is narrower than the flag.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Forks into the new namespaces of `flags` (`CLONE_NEW…`), with `CLONE_PARENT` where `sibling` is
/// set: then the new process is a child of this process's parent. With `group` it begins its life
/// in that control group of version 2.
pub(crate) fn clone_into(
    flags: libc::c_int,
    sibling: bool,
    group: Option<&OwnedFd>,
) -> io::Result<Fork> {
    let parent = if sibling { libc::CLONE_PARENT } else { 0 };
    let flags = (flags | parent) as u64;
    let Some(group) = group else {
        let flags = (flags | libc::SIGCHLD as u64) as libc::c_long;
        // Needed: `fork` takes no flags, and the C library's `clone` wants a second stack.
        // SAFETY: without CLONE_VM the child gets a copy of the whole address space, exactly as
        // after `fork`; stack 0 means "go on using this one", which is the child's own copy. The
        // launcher has one thread, so no lock can be held by a thread that the child does not
        // have. All further arguments are unused with these flags.
        let result =
            unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
        return fork_result(result);
    };
    // SAFETY: all-zero is a valid `clone_args`: nothing is asked for.
    let mut wish: libc::clone_args = unsafe { std::mem::zeroed() };
    wish.flags = flags | CLONE_INTO_CGROUP;
    // With CLONE_PARENT the signal is the parent's, and the kernel wants none here.
    wish.exit_signal = if sibling { 0 } else { libc::SIGCHLD as u64 };
    wish.cgroup = group.as_raw_fd() as u64;
    let size = size_of::<libc::clone_args>();
    // Needed: the group is named to clone3 alone.
    // SAFETY: as above; the structure has the size that is passed with it and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const wish, size) };
    fork_result(result)
}

/// Forks.
pub(crate) fn fork() -> io::Result<Fork> {
    // Needed: there is no safe fork.
    // SAFETY: the launcher has one thread, so the child may do all that the parent may.
    let result = unsafe { libc::fork() };
    fork_result(result.into())
}

fn fork_result(result: libc::c_long) -> io::Result<Fork> {
    match result {
        0 => Ok(Fork::Child),
        pid => match i32::try_from(pid).ok().and_then(Pid::from_raw) {
            Some(pid) if pid.as_raw_nonzero().get() > 0 => Ok(Fork::Parent(pid)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Ends this process at once, without running what the parent registered for its own end.
pub(crate) fn exit_now(code: i32) -> ! {
    // Needed: `std::process::exit` runs the C library's exit handlers, which belong to the
    // process this one was forked from.
    // SAFETY: `_exit` does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Replaces this process's program. Returns only on failure.
pub(crate) fn exec(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = null_terminated(argv);
    let env = null_terminated(env);
    // Needed: `std` keeps the environment and searches PATH; this must do neither.
    // SAFETY: `program` is a C string; both arrays end with a null pointer and point to C strings
    // that live until the call returns.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process's program by an open file. Returns only on failure.
pub(crate) fn exec_descriptor(file: impl AsFd, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = null_terminated(argv);
    let env = null_terminated(env);
    let number = file.as_fd().as_raw_fd();
    // Needed: as `exec`; `fexecve` would go through /proc where the call fails.
    // SAFETY: the path is an empty C string, allowed by AT_EMPTY_PATH; the descriptor is open;
    // both arrays end with a null pointer and point to C strings that live until the call returns.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            number,
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

fn null_terminated(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Marks every descriptor from `first` on to be closed by the next exec, or closes it now.
pub(crate) fn close_from(first: u32, now: bool) -> io::Result<()> {
    let flags = if now { 0 } else { libc::CLOSE_RANGE_CLOEXEC };
    // Needed: neither `std` nor `rustix` has close_range.
    // SAFETY: with CLOEXEC nothing is closed yet. With `now` the caller owns no descriptor in the
    // range: it is used once, as the first act of the launcher, before anything is opened.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    done(result)
}

/// Makes descriptor `from` also descriptor `to`, which stays open across exec.
pub(crate) fn place(from: impl AsFd, to: RawFd) -> io::Result<()> {
    let from = from.as_fd().as_raw_fd();
    // Needed: the number matters (0, 1, 2, 3), and safe forms own what they overwrite.
    // SAFETY: `from` is open. `to` is one of the numbers that the launcher reserves for the
    // program; no owned descriptor has that number, because the control socket was moved up
    // first. dup2 of a number onto itself would leave CLOEXEC set, hence the second branch.
    let result = unsafe {
        if from == to { libc::fcntl(to, libc::F_SETFD, 0) } else { libc::dup2(from, to) }
    };
    done(i64::from(result))
}

/// Gives an owned descriptor the number `to`, one of those that the launcher reserves for the
/// program and that nothing else has by then.
pub(crate) fn renumber(from: OwnedFd, to: RawFd) -> io::Result<OwnedFd> {
    if from.as_raw_fd() == to {
        return Ok(from);
    }
    // Needed: the number matters, and safe forms choose it themselves.
    // SAFETY: `from` is open; `to` is free, so that nobody's descriptor is overwritten.
    let result = unsafe { libc::dup3(from.as_raw_fd(), to, libc::O_CLOEXEC) };
    done(i64::from(result))?;
    // SAFETY: just made, and nobody else knows it; `from` is another number and closes itself.
    Ok(unsafe { OwnedFd::from_raw_fd(to) })
}

/// Takes over a descriptor that this process was started with, or moves one out of the way of the
/// numbers that the program gets.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // Needed: the contract with the host names a number.
    // SAFETY: F_DUPFD_CLOEXEC on any number either gives a new descriptor, owned by nobody yet,
    // or fails; ten and above keeps clear of the numbers the program gets.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 10) };
    done(i64::from(copy))?;
    // SAFETY: just made, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// How a detached mount is changed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountChange<'a> {
    /// Attributes to set (`MOUNT_ATTR_…`).
    pub(crate) set: u64,
    /// With `MOUNT_ATTR_IDMAP`: the user namespace whose map is used.
    pub(crate) user_namespace: Option<&'a OwnedFd>,
}

/// Changes the whole tree of mounts at `tree`.
pub(crate) fn change_mounts(tree: &OwnedFd, change: MountChange<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: change.user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let size = size_of::<libc::mount_attr>();
    // Needed: `rustix` has no mount_setattr.
    // SAFETY: the path is an empty C string, allowed by AT_EMPTY_PATH; the structure has the size
    // that is passed with it and lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size,
        )
    };
    done(result)
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up(socket: impl AsFd) -> io::Result<()> {
    // Needed: interfaces are changed by ioctl with a C structure.
    // SAFETY: all-zero is a valid `ifreq`; the name ends with a zero; the call reads the structure
    // and lives shorter than it. Writing the flags member of the union is what SIOCSIFFLAGS reads.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (at, byte) in b"lo".iter().enumerate() {
            request.ifr_name[at] = *byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)
    };
    done(i64::from(result))
}

/// Gives this process a cgroup namespace of its own, with its present groups as roots.
pub(crate) fn own_cgroup_namespace() -> io::Result<()> {
    // Needed: the safe form is deprecated, for flags that this is not.
    // SAFETY: this flag changes what paths of groups look like and nothing that memory or
    // descriptors depend on.
    let result = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) };
    done(i64::from(result))
}

/// Sets the host name of this UTS namespace.
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    // Needed: `rustix` keeps it behind another feature.
    // SAFETY: pointer and length are of one live string.
    let result = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    done(i64::from(result))
}

/// Blocks SIGCHLD and gives a descriptor that is readable when a child has changed, and ignores
/// what a terminal or an operator may send to a group: the jail ends by its lifeline.
pub(crate) fn watch_children() -> io::Result<OwnedFd> {
    // Needed: signal masks and signalfd have no safe form.
    // SAFETY: the set is initialised by sigemptyset before it is used; -1 asks for a new
    // descriptor, owned by nobody yet; SIG_IGN is a valid disposition for each of these signals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        done(i64::from(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())))?;
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let watch = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        done(i64::from(watch))?;
        Ok(OwnedFd::from_raw_fd(watch))
    }
}

/// Gives the next program the signal behaviour of a fresh one: nothing blocked, nothing ignored.
pub(crate) fn reset_signals() {
    // Needed: exec keeps the mask and whatever is ignored; Rust ignores SIGPIPE.
    // SAFETY: the set is initialised before use; SIG_DFL is valid for every signal, and the two
    // that cannot be changed merely fail.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        for signal in 1..=31 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Hands memory that was freed back to the kernel.
pub(crate) fn give_memory_back() {
    // Needed: the allocator of the executable has no safe form of it.
    // SAFETY: it takes free memory only, and may be called at any time; where another allocator is
    // in use there is none.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

fn done(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
