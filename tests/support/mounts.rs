//! File systems that root mounts on the execution point while they live. Only in its own mount namespace.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{SOON, eventually};

/// One mount. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Mounted {
    point: PathBuf,
    server: Option<Child>,
}

impl Mounted {
    /// An empty file system that everybody may write to.
    pub(crate) fn tmpfs(point: &Path) -> Self {
        mount(&["-t", "tmpfs", "-o", "mode=777", "tmpfs"], point);
        Self::at(point)
    }

    /// What is at `source`, a file or directory, at `point` too.
    pub(crate) fn bind(source: &Path, point: &Path) -> Self {
        let source = source.to_str().expect("UTF-8");
        mount(&["--bind", source], point);
        Self::at(point)
    }

    /// A file system whose server never says a word. Who waits for it can be killed.
    pub(crate) fn mute(point: &Path) -> Self {
        Self::served(point, "")
    }

    /// A file system whose server takes every request and answers none. Who waits for it can't be killed
    /// while the server lives.
    pub(crate) fn deaf(point: &Path) -> Self {
        // FUSE_INIT is answered: protocol 7.31, as the kernel's `fuse_kernel.h` has it.
        const SERVE: &str = "import struct, threading\n\
            def serve():\n\
            \x20   while True:\n\
            \x20       request = os.read(fuse, 1 << 20)\n\
            \x20       opcode, unique = struct.unpack_from('<IQ', request, 4)\n\
            \x20       if opcode == 26:\n\
            \x20           answer = struct.pack('<IIIIHHIIHHI7I', 7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0, *[0] * 7)\n\
            \x20           os.write(fuse, struct.pack('<IiQ', 16 + len(answer), 0, unique) + answer)\n\
            threading.Thread(target=serve, daemon=True).start()\n";
        Self::served(point, SERVE)
    }

    fn served(point: &Path, serve: &str) -> Self {
        const MOUNT: &str = "import ctypes, os, sys, time\n\
            fuse = os.open('/dev/fuse', os.O_RDWR)\n\
            options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other'.encode()\n\
            libc = ctypes.CDLL(None, use_errno=True)\n\
            if libc.mount(b'mute', sys.argv[1].encode(), b'fuse', 0, options):\n\
            \x20   sys.exit(os.strerror(ctypes.get_errno()))\n";
        let server = format!("{MOUNT}{serve}sys.stdin.read()\nos._exit(0)\n");
        let server = Command::new("sudo")
            .args(["python3", "-c", &server])
            .arg(point)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the execution point has sudo and Python");
        let mounted = Self {
            point: point.to_owned(),
            server: Some(server),
        };
        assert!(
            eventually(SOON, || is_mounted(point)),
            "{}",
            point.display()
        );
        mounted
    }

    fn at(point: &Path) -> Self {
        Self {
            point: point.to_owned(),
            server: None,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Its standard input ends, and with it the server: whoever waits for it gets an error.
        if let Some(mut server) = self.server.take() {
            drop(server.stdin.take());
            let _ = server.wait();
        }
        let _ = Command::new("sudo")
            .args(["umount", "-l"])
            .arg(&self.point)
            .status();
    }
}

fn mount(arguments: &[&str], point: &Path) {
    let mut command = Command::new("sudo");
    let status = command.arg("mount").args(arguments).arg(point).status();
    let status = status.expect("the execution point has sudo");
    assert!(status.success(), "mount {arguments:?}: {status}");
}

fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("there is a /proc");
    let point = point.to_str().expect("UTF-8");
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(point))
}
