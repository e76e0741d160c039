"""What a filter of the untrusted profile has to refuse: by hand, not from the product's tables."""

from __future__ import annotations

import errno

from fumehood.worker.sandbox.syscalls import ARCHITECTURES

SET_UP = """
unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree
open_tree_attr mount_setattr
"""
DENIED = """
statmount listmount listns sethostname setdomainname keyctl add_key request_key bpf perf_event_open
ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff syslog acct
quotactl quotactl_fd settimeofday clock_settime adjtimex clock_adjtime vhangup name_to_handle_at
open_by_handle_at lookup_dcookie nfsservctl fanotify_init fanotify_mark set_mempolicy migrate_pages
move_pages mbind set_mempolicy_home_node ioprio_set sched_setattr memfd_secret mq_open mq_unlink
msgget msgsnd msgrcv msgctl semget semop semtimedop semctl shmget shmat shmctl
"""
DENIED_X86 = "iopl ioperm modify_ldt create_module get_kernel_syms query_module _sysctl uselib"
NOT_THERE = "clone3 io_uring_setup io_uring_enter io_uring_register userfaultfd"


def refused(machine: str) -> dict[str, int]:
    """The errno of every call that is refused whatever its arguments, by name."""
    denied = " ".join((SET_UP, DENIED, DENIED_X86 if machine == "x86_64" else ""))
    names: dict[str, int] = dict.fromkeys(denied.split(), errno.EPERM)
    names |= dict.fromkeys(NOT_THERE.split(), errno.ENOSYS)
    assert not set(names) - set(ARCHITECTURES[machine].numbers)
    return names
