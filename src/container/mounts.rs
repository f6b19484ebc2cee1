//! The mount table of this process, from `/proc/self/mountinfo` (proc(5)): the writable mounts below a
//! directory, and the other mounts through which files can be reached. Accesses no other file system, so that
//! a dead one can't make it hang.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const TABLE: &str = "/proc/self/mountinfo";

#[derive(Debug, Default)]
pub struct MountTable {
    mounts: Vec<Mount>,
    /// Indices in `mounts`, by the id of the parent mount.
    children: HashMap<u64, Vec<usize>>,
    /// The mounts whose parent this process doesn't see.
    roots: Vec<usize>,
}

#[derive(Debug)]
struct Mount {
    id: u64,
    parent: u64,
    /// `MAJOR:MINOR`
    device: String,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    point: PathBuf,
    writable: Writable,
    propagation: Propagation,
    file_system: String,
    options: String,
}

#[derive(Debug, Clone, Copy)]
pub struct MountPoint<'a> {
    pub root: &'a Path,
    pub point: &'a Path,
    /// The file system's own options, with commas between them.
    pub options: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writable {
    Yes,
    /// The whole file system is read-only, until it is mounted otherwise. [`MountChanges`] isn't told if that happens
    /// in another mount namespace.
    NotNow,
    No,
}

/// Counts the changes of this process's mount table without reading it, which takes the kernel 50 µs with twenty
/// mounts and may take milliseconds with thousands.
#[derive(Debug)]
pub struct MountChanges {
    table: File,
    seen: u64,
}

impl MountChanges {
    /// # Errors
    /// When there is no `/proc`.
    pub fn watch() -> io::Result<Self> {
        Ok(Self {
            table: File::open(TABLE)?,
            seen: 0,
        })
    }

    /// Another number than before if something was mounted, unmounted or mounted otherwise since the last call; also
    /// if that can't be told.
    pub fn count(&mut self) -> u64 {
        // See "/proc/pid/mounts" in proc(5).
        let changed = PollFlags::POLLERR | PollFlags::POLLPRI;
        let mut table = [PollFd::new(self.table.as_fd(), PollFlags::POLLPRI)];
        let is_the_same = poll(&mut table, PollTimeout::ZERO).is_ok()
            && table[0]
                .revents()
                .is_some_and(|found| !found.intersects(changed));
        if !is_the_same {
            self.seen += 1;
        }
        self.seen
    }
}

/// Whether a mount made below this one elsewhere, by root or an automounter, appears here too
/// (`mount_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    /// Yes: the mount is `shared`, or has a `master`.
    Received,
    Private,
}

impl MountTable {
    /// Reads the table of this process.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read(TABLE)?))
    }

    /// Parses the text of such a file. Skips malformed lines.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n');
        let mounts: Vec<Mount> = lines.filter_map(Mount::parse).collect();
        let ids: HashMap<u64, usize> = mounts.iter().map(|mount| mount.id).zip(0..).collect();
        let (mut children, mut roots) = (HashMap::<u64, Vec<usize>>::new(), Vec::new());
        for (place, mount) in mounts.iter().enumerate() {
            if mount.parent != mount.id && ids.contains_key(&mount.parent) {
                children.entry(mount.parent).or_default().push(place);
            } else {
                roots.push(place);
            }
        }
        Self {
            mounts,
            children,
            roots,
        }
    }

    /// The mounts of this file system type, in the table's order.
    pub fn of_type<'a>(&'a self, file_system: &'a str) -> impl Iterator<Item = MountPoint<'a>> {
        let of_type = move |mount: &&Mount| mount.file_system == file_system;
        self.mounts.iter().filter(of_type).map(|mount| MountPoint {
            root: &mount.root,
            point: &mount.point,
            options: &mount.options,
        })
    }

    /// The mount that `path`, which is absolute and without links, leads to. Among the mounts on one parent
    /// the shortest matching path covers the others; its own child mounts are searched next.
    fn at(&self, path: &Path) -> Option<&Mount> {
        let mut candidates = &self.roots;
        let mut found = None;
        loop {
            let on_the_way = candidates.iter().map(|place| &self.mounts[*place]);
            let next = on_the_way
                .filter(|mount| path.starts_with(&mount.point))
                .min_by_key(|mount| mount.point.components().count());
            let Some(next) = next else {
                return found;
            };
            found = Some(next);
            match self.children.get(&next.id) {
                Some(children) => candidates = children,
                None => return found,
            }
        }
    }

    /// The visible mounts below `directory`.
    fn below(&self, directory: &Path) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |mount| {
            mount.point != directory
                && mount.point.starts_with(directory)
                && self.at(&mount.point).is_some_and(|top| top.id == mount.id)
        })
    }

    /// The mount points below `directory` that are not read-only, parents first. `directory` is absolute and
    /// without links.
    #[must_use]
    pub fn writable_below(&self, directory: &Path) -> Vec<PathBuf> {
        let writable = self
            .below(directory)
            .filter(|mount| mount.writable == Writable::Yes);
        let mut points: Vec<PathBuf> = writable.map(|mount| mount.point.clone()).collect();
        points.sort();
        points
    }

    /// Whether a mount below `directory` may become writable without a change that [`MountChanges`] counts.
    #[must_use]
    pub fn may_become_writable_below(&self, directory: &Path) -> bool {
        self.below(directory)
            .any(|mount| mount.writable == Writable::NotNow)
    }

    /// Whether `directory` mounts file systems on demand, but this process and its children won't see new
    /// ones. `directory` is absolute and without links.
    #[must_use]
    pub fn automounts_are_cut_off(&self, directory: &Path) -> bool {
        self.at(directory).is_some_and(|mount| {
            mount.file_system == "autofs" && mount.propagation == Propagation::Private
        })
    }

    /// The paths below `directory` at which the file at `path` may also be seen, through another mount of the
    /// same file system. Both paths are absolute and without links. The result is not certain, because
    /// network file systems don't tell which of their directories is mounted.
    #[must_use]
    pub fn aliases(&self, directory: &Path, path: &Path) -> Vec<PathBuf> {
        let Some((device, place)) = self.origin(path) else {
            return Vec::new();
        };
        let itself = self.origin(directory);
        let itself = itself.map(|(device, root)| (device, root, directory));
        let below = self.below(directory).map(|mount| {
            let device = mount.device.as_str();
            (device, mount.root.clone(), mount.point.as_path())
        });
        itself
            .into_iter()
            .chain(below)
            .filter(|(of, _, _)| *of == device)
            .filter_map(|(_, root, point)| {
                let rest = place.strip_prefix(root).ok()?;
                // Joining an empty path would add a slash.
                let is_it = rest.as_os_str().is_empty();
                Some(if is_it {
                    point.to_owned()
                } else {
                    point.join(rest)
                })
            })
            .collect()
    }

    /// The device of `path`'s file system, and the path within it.
    fn origin(&self, path: &Path) -> Option<(&str, PathBuf)> {
        let mount = self.at(path)?;
        let rest = path.strip_prefix(&mount.point).ok()?;
        Some((&mount.device, mount.root.join(rest)))
    }
}

impl Mount {
    /// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER-OPTIONS`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let device = String::from_utf8_lossy(fields.next()?).into_owned();
        let root = unescaped(fields.next()?);
        let point = unescaped(fields.next()?);
        let options = fields.next()?;
        let mut propagation = Propagation::Private;
        for tag in fields.by_ref().take_while(|field| *field != b"-") {
            if tag.starts_with(b"shared:") || tag.starts_with(b"master:") {
                propagation = Propagation::Received;
            }
        }
        let mut behind = fields;
        let file_system = behind.next().unwrap_or_default();
        let of_the_file_system = behind.nth(1).unwrap_or_default();
        let is_read_only = |options: &[u8]| options.split(|byte| *byte == b',').any(|o| o == b"ro");
        let writable = if is_read_only(options) {
            Writable::No
        } else if is_read_only(of_the_file_system) {
            Writable::NotNow
        } else {
            Writable::Yes
        };
        Some(Self {
            id,
            parent,
            device,
            root,
            point,
            writable,
            propagation,
            file_system: String::from_utf8_lossy(file_system).into_owned(),
            options: String::from_utf8_lossy(of_the_file_system).into_owned(),
        })
    }
}

/// Decodes octal escapes such as `\040`, which stand for blanks, line ends and backslashes.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, after @ ..] = rest {
        if let (
            b'\\',
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                behind @ ..,
            ],
        ) = (*byte, after)
        {
            path.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = behind;
        } else {
            path.push(*byte);
            rest = after;
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel of an execution point wrote it, shortened.
    const TABLE: &str = "\
66 60 254:0 /ep / rw,relatime - ext4 /dev/vda rw,discard
69 66 254:0 /disk/home /home rw,relatime shared:5 - ext4 /dev/vda rw
44 69 0:48 / /home/e/ext/sub rw,relatime master:21 propagate_from:2 - tmpfs t rw,mode=777
45 69 0:49 / /home/e/ext/sub2 rw,relatime - tmpfs t rw
46 45 0:50 / /home/e/ext/sub2/a\\040b\\134c\\012d rw,relatime - tmpfs t rw
47 69 254:0 /disk/tmp/hf /home/e/ext/onefile rw,relatime - ext4 /dev/vda rw
48 69 0:51 / /home/e/ext/ro ro,relatime - tmpfs t rw
49 69 0:52 / /home/e/ext/cvmfs rw,relatime - fuse cvmfs2 ro,user_id=0
50 69 0:53 / /home/e/ext/hidden/below rw - tmpfs t rw
51 69 0:54 / /home/e/ext/hidden rw - tmpfs t rw
52 69 0:55 / /home/e/ext/twice rw - tmpfs t rw
53 52 0:56 / /home/e/ext/twice ro - tmpfs t rw
54 69 0:57 / /home/e/extra rw - tmpfs t rw
55 69 254:0 /disk/home/job/data /home/e/alias/of\\040data rw - ext4 /dev/vda rw
nonsense
";

    #[test]
    fn what_can_be_written_below_a_directory_is_found_and_nothing_else() {
        let table = MountTable::parse(TABLE.as_bytes());
        let below = table.writable_below(Path::new("/home/e/ext"));
        let expected = ["hidden", "onefile", "sub", "sub2", "sub2/a b\\c\nd"];
        assert_eq!(
            below,
            expected.map(|name| Path::new("/home/e/ext").join(name))
        );
        assert!(
            table
                .writable_below(Path::new("/home/e/ext/sub"))
                .is_empty()
        );
        assert!(table.writable_below(Path::new("/elsewhere")).is_empty());
    }

    #[test]
    fn a_file_may_be_seen_through_other_mounts_of_its_file_system() {
        let table = MountTable::parse(TABLE.as_bytes());
        let alias = |directory: &str, path: &str| -> Vec<String> {
            let aliases = table.aliases(Path::new(directory), Path::new(path));
            aliases
                .iter()
                .map(|path| path.display().to_string())
                .collect()
        };
        let token = "/home/job/data/token";
        assert_eq!(
            alias("/home/e/alias", token),
            ["/home/e/alias/of data/token"]
        );
        assert_eq!(
            alias("/home/e/alias/of data", token),
            ["/home/e/alias/of data/token"]
        );
        assert_eq!(alias("/home/job", "/home/e/alias/of data/token"), [token]);
        assert_eq!(alias("/home/e/alias", "/home/job/token"), [""; 0]);
        assert_eq!(alias("/home/e/ext", token), [""; 0]);
    }

    #[test]
    fn automounts_are_cut_off_where_mounts_of_the_machine_do_not_arrive() {
        let table = "\
60 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
61 60 0:40 / /a rw shared:19 - autofs automount rw,indirect
62 60 0:41 / /b rw master:19 - autofs automount rw,indirect
63 60 0:42 / /c rw - autofs automount rw,indirect
64 60 0:43 / /d rw - fuse cvmfs2 ro
";
        let table = MountTable::parse(table.as_bytes());
        for (directory, is_cut_off) in [("/a", false), ("/b", false), ("/c", true), ("/d", false)] {
            let found = table.automounts_are_cut_off(Path::new(directory));
            assert_eq!(found, is_cut_off, "{directory}");
        }
    }

    #[test]
    fn a_file_system_that_is_read_only_as_a_whole_may_become_writable_uncounted() {
        let table = "\
60 1 0:40 / / rw - ext4 /dev/a rw
61 60 0:41 / /a ro - nfs server:/a ro
62 60 0:42 / /b rw - nfs server:/b ro
";
        let table = MountTable::parse(table.as_bytes());
        for (directory, may) in [("/", true), ("/a", false), ("/b", false)] {
            let found = table.may_become_writable_below(Path::new(directory));
            assert_eq!(found, may, "{directory}");
        }
        assert!(table.writable_below(Path::new("/")).is_empty());
    }

    #[test]
    fn this_machines_own_table_can_be_read() {
        let table = MountTable::read().expect("there is a /proc");
        assert!(table.at(Path::new("/proc/self")).is_some());
    }
}
