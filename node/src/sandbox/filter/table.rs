//! Which system calls a function may make. An entry that would surprise says why it is there.

use std::ffi::c_long;

/// What a filter is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// An interpreter with a large standard library, rather than one shared library.
    pub python: bool,
    /// The manifest says `egress = "host"`.
    pub host_network: bool,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Check {
    Allow,
    /// Fails with this errno.
    Refuse(i32),
    /// Allowed if the argument is one of these, else it fails.
    OneOf {
        argument: u32,
        values: &'static [u32],
        otherwise: i32,
    },
    /// Allowed if the argument has none of these bits, else it fails.
    NoneOf {
        argument: u32,
        bits: u32,
        otherwise: i32,
    },
    /// The same, and not these two together.
    NoneOfNorBoth {
        argument: u32,
        bits: u32,
        both: [u32; 2],
        otherwise: i32,
    },
    /// Allowed if these arguments are zero, else it fails.
    Zero {
        arguments: &'static [u32],
        otherwise: i32,
    },
}

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) call: c_long,
    pub(super) check: Check,
}

/// The entries for one kind of function: first those whose arguments are looked at.
pub(super) fn rules(profile: Profile) -> Vec<Rule> {
    let mut rules: Vec<Rule> = CHECKED.to_vec();
    let mut add =
        |calls: &[c_long], check| rules.extend(calls.iter().map(|call| Rule { call: *call, check }));
    if profile.host_network {
        add(&[libc::SYS_socket], INTERNET_ONLY);
        add(NETWORK, Check::Allow);
    } else {
        // Not even a socket that leads nowhere. And no `connect`: an instance that disconnects its bus socket and
        // connects it again could meet another that did the same.
        add(&[libc::SYS_socket], Check::Refuse(libc::EPERM));
        add(NETWORK, Check::Refuse(libc::EPERM));
    }
    for group in [FILES, MEMORY, PROCESSES, SIGNALS_AND_TIME, WAITING, LEGACY] {
        add(group, Check::Allow);
    }
    let interpreters = if profile.python { Check::Allow } else { Check::Refuse(libc::EPERM) };
    add(INTERPRETERS, interpreters);
    add(FORBIDDEN, Check::Refuse(libc::EPERM));
    rules
}

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// For `unshare` only; `clone` has the number of a signal in these bits.
const CLONE_NEWTIME: u32 = 0x80;

const CHECKED: &[Rule] = &[
    // Processes and threads, but no namespaces: a user namespace would bring capabilities back. And no sibling with the same
    // memory: what is spryd's child may be an instance, which would share it with its zygote.
    Rule {
        call: libc::SYS_clone,
        check: Check::NoneOfNorBoth {
            argument: 0,
            bits: NAMESPACES,
            both: [libc::CLONE_PARENT as u32, libc::CLONE_VM as u32],
            otherwise: libc::EPERM,
        },
    },
    // Of oneself only: the other processes of a function have the same user, its zygote too, of which all that come later would
    // have it. CPUs: the size of a thread pool follows from them. Priority: that of a process, and downwards (RLIMIT_NICE is 0).
    Rule {
        call: libc::SYS_sched_setaffinity,
        check: Check::Zero { arguments: &[0], otherwise: libc::EPERM },
    },
    Rule { call: libc::SYS_setpriority, check: Check::Zero { arguments: &[0, 1], otherwise: libc::EPERM } },
    Rule { call: libc::SYS_prlimit64, check: Check::Zero { arguments: &[0], otherwise: libc::EPERM } },
    // The runtime asks by `CLONE_THREAD`, which makes nothing, whether it has just one thread.
    Rule {
        call: libc::SYS_unshare,
        check: Check::NoneOf { argument: 0, bits: NAMESPACES | CLONE_NEWTIME, otherwise: libc::EPERM },
    },
    // How much is in a pipe, non-blocking, close-on-exec, "is this a terminal, and how wide". Drivers have
    // thousands of others, and faults in them.
    Rule {
        call: libc::SYS_ioctl,
        check: Check::OneOf {
            argument: 1,
            values: &[
                libc::FIONREAD as u32,
                libc::FIONBIO as u32,
                libc::FIOCLEX as u32,
                libc::FIONCLEX as u32,
                libc::TCGETS as u32,
                libc::TIOCGWINSZ as u32,
                libc::TIOCGPGRP as u32,
            ],
            otherwise: libc::ENOTTY,
        },
    },
    // Pairs within the function: event loops wake themselves through one.
    Rule {
        call: libc::SYS_socketpair,
        check: Check::OneOf { argument: 0, values: &[libc::AF_UNIX as u32], otherwise: libc::EPERM },
    },
];

/// No raw packets, no netlink, no virtual machine's back door.
const INTERNET_ONLY: Check = Check::OneOf {
    argument: 0,
    values: &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32],
    otherwise: libc::EAFNOSUPPORT,
};

const NETWORK: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_setsockopt,
];

const FILES: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    // named pipes in /tmp; a device needs a capability that nobody here has
    libc::SYS_mknodat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_copy_file_range,
    libc::SYS_umask,
];

const MEMORY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    // within RLIMIT_MEMLOCK
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    // allocators and numeric libraries ask on which node memory lies
    libc::SYS_get_mempolicy,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    // the runtime's own segments come as descriptors; a function may make others for its children
    libc::SYS_memfd_create,
    // what is mapped stays so: instances that are rewound seal what they go back to
    libc::SYS_mseal,
    libc::SYS_membarrier,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
];

const PROCESSES: &[c_long] = &[
    // helper programs, from what /usr has: os.system, subprocess, popen
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    // To what it is already, which is all that is possible: a shell does so at its start.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_capget,
    libc::SYS_capset,
    // names of threads, the death signal, the address of the thread's id; what is dangerous needs a capability
    libc::SYS_prctl,
    // A function may filter its own children further.
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_getattr,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_getpriority,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
];

const SIGNALS_AND_TIME: &[c_long] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sigaltstack,
    // to what it has started: landlock keeps an instance's signals in, and without it every process but its function's has another user
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
];

const WAITING: &[c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // on the bus and the control socket, and on pairs: what is open already
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
];

/// What Python's standard library uses (shutil copies attributes, event loops watch files) and a native function has no
/// need of.
const INTERPRETERS: &[c_long] = &[
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// x86-64 still has the calls that others never got; libcs use them there.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_mknod,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_getdents,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_getpgrp,
    libc::SYS_fork,
    // the thread pointer
    libc::SYS_arch_prctl,
    // posix_spawn and subprocess
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[c_long] = &[];

/// Named so that they say "not permitted" rather than "not there".
const FORBIDDEN: &[c_long] = &[
    // other processes' memory and descriptors
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // the class: whoever may leave SCHED_EXT goes before all who are in it
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr,
    // namespaces, mounts, roots
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // past the paths, by a file's handle
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // large parts of the kernel that functions don't need
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_setgroups,
    // memory that outlives the process that made it, uncounted by anyone
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semctl,
    libc::SYS_semtimedop,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];
