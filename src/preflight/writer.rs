//! A program of 208 bytes that copies a file, for containers whose image has no program at all: it is
//! how a probe writes through a bind. A static ELF executable by hand, since any compiled one would need
//! the image's or the machine's libraries. Pure.
//!
//! In words: `char buf[64]; n = read(open(argv[1], O_RDONLY), buf, 64);
//! m = write(open(argv[2], O_WRONLY | O_CREAT | O_EXCL, 0600), buf, n); exit(m != 36);`, 36 being the length of a UUID as text.

/// Where the program is loaded, and the length of its headers.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// As `as` assembles it.
#[rustfmt::skip]
const CODE: [u8; 88] = [
    0x48, 0x8b, 0x74, 0x24, 0x10, // mov rsi,QWORD PTR [rsp+0x10]
    0x31, 0xd2, // xor edx,edx
    0xe8, 0x3b, 0x00, 0x00, 0x00, // call 47 <openit>
    0x89, 0xc7, // mov edi,eax
    0x48, 0x83, 0xec, 0x40, // sub rsp,0x40
    0x48, 0x89, 0xe6, // mov rsi,rsp
    0x6a, 0x40, // push 0x40
    0x5a, // pop rdx
    0x31, 0xc0, // xor eax,eax
    0x0f, 0x05, // syscall
    0x89, 0xc3, // mov ebx,eax
    0x48, 0x8b, 0x74, 0x24, 0x58, // mov rsi,QWORD PTR [rsp+0x58]
    0xba, 0xc1, 0x00, 0x00, 0x00, // mov edx,0xc1
    0xe8, 0x1a, 0x00, 0x00, 0x00, // call 47 <openit>
    0x89, 0xc7, // mov edi,eax
    0x48, 0x89, 0xe6, // mov rsi,rsp
    0x89, 0xda, // mov edx,ebx
    0x6a, 0x01, // push 0x1
    0x58, // pop rax
    0x0f, 0x05, // syscall
    0x31, 0xff, // xor edi,edi
    0x83, 0xf8, 0x24, // cmp eax,0x24
    0x40, 0x0f, 0x95, 0xc7, // setne dil
    0x6a, 0x3c, // push 0x3c
    0x58, // pop rax
    0x0f, 0x05, // syscall
    0x6a, 0x9c, // push 0xffffffffffffff9c
    0x5f, // pop rdi
    0x41, 0xba, 0x80, 0x01, 0x00, 0x00, // mov r10d,0x180
    0xb8, 0x01, 0x01, 0x00, 0x00, // mov eax,0x101
    0x0f, 0x05, // syscall
    0xc3, // ret
];

/// The program, where there is one for this machine.
pub(super) fn program() -> Option<Vec<u8>> {
    cfg!(target_arch = "x86_64").then(|| {
        let length = HEADERS + CODE.len() as u64;
        let mut elf = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
        let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
        let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
        // ET_EXEC, EM_X86_64, version, entry, program header's place, no sections, no flags.
        half(&mut elf, 2);
        half(&mut elf, 62);
        word(&mut elf, 1);
        long(&mut elf, BASE + HEADERS);
        long(&mut elf, 64);
        long(&mut elf, 0);
        word(&mut elf, 0);
        for size in [64, 56, 1, 0, 0, 0] {
            half(&mut elf, size);
        }
        // PT_LOAD, readable and executable: the whole file, in one page.
        word(&mut elf, 1);
        word(&mut elf, 5);
        for value in [0, BASE, BASE, length, length, 0x1000] {
            long(&mut elf, value);
        }
        elf.extend(CODE);
        elf
    })
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_copies_a_file_and_replaces_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("writer"), program().expect("for this machine")).expect("written");
        fs::set_permissions(at("writer"), fs::Permissions::from_mode(0o700)).expect("set");
        let text = "0123456789abcdef0123456789abcdef0123";
        fs::write(at("question"), text).expect("written");
        let copy = || {
            let mut command = Command::new(at("writer"));
            command.args([at("question"), at("answer")]);
            command.status().expect("it runs").code()
        };
        assert_eq!(copy(), Some(0));
        assert_eq!(fs::read_to_string(at("answer")).expect("it is there"), text);
        assert_eq!(copy(), Some(1), "the file is there already");
    }
}
