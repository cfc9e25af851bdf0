//! The inbound hook's program, ready to be loaded once more: every workload has an instance, with a map of listeners and the
//! cookie of its namespace as its own. The object is read and its references are resolved once: that takes some milliseconds,
//! an instance some tenths of one.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use aya::maps::MapData;
use aya_obj::generated::bpf_insn;
use shunt_ebpf_common::maps::NetnsCookie;

use super::super::kernel;
use super::super::object::{failed, missing};
use crate::InterceptError;

const PROGRAM: &str = "shunt_sk_lookup";
const LISTENERS: &str = "SHUNT_LISTENERS";
const COOKIE: &str = "NETNS_COOKIE";
/// From linux/bpf.h: a load of 64 bits, which are a map by its descriptor, or the address of its value.
const LOAD_WIDE: u8 = 0x18;
const MAP: u8 = 1;
const MAP_VALUE: u8 = 2;

/// See the head of this module.
pub(in crate::ebpf) struct Template {
    license: CString,
    instructions: Vec<u64>,
    /// The maps of all instances: the program names them by these descriptors.
    _shared: Vec<MapData>,
    listeners: Own,
    statics: Own,
    /// Where the cookie is in [`Template::statics`].
    cookie: usize,
}

/// A map that each instance has for itself.
struct Own {
    name: String,
    map: aya_obj::Map,
    /// The instructions that name it.
    named: Vec<usize>,
}

impl Template {
    /// `shared`: where those maps are pinned.
    pub(in crate::ebpf) fn of(
        object: &[u8],
        shared: &[(&str, PathBuf)],
    ) -> Result<Self, InterceptError> {
        let unreadable = |error| failed("read the eBPF object", &error);
        let mut parsed = aya_obj::Object::parse(object).map_err(unreadable)?;
        let maps: Vec<(String, aya_obj::Map)> = parsed.maps.drain().collect();
        // For now each has a number below zero in place of a descriptor.
        let numbers = (1..).map(|number: i32| -number);
        let numbered = maps.iter().zip(numbers);
        let numbered = numbered.map(|((name, map), number)| (name.as_str(), number, map));
        let functions = parsed
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let linked = parsed.relocate_maps(numbered, &functions);
        let linked = linked.and_then(|()| parsed.relocate_calls(&functions));
        linked.map_err(|error| failed("link the eBPF object", &error))?;
        let program = parsed.programs.get(PROGRAM);
        let program = program.ok_or_else(|| missing("program", PROGRAM))?;
        let function = parsed.functions.get(&program.function_key());
        let function = function.ok_or_else(|| missing("function", PROGRAM))?;

        let mut instructions: Vec<u64> = function.instructions.iter().map(word).collect();
        let (mut held, mut own) = (Vec::new(), HashMap::new());
        for (number, (name, map)) in maps.into_iter().enumerate() {
            let number = -(number as i32 + 1);
            let named = naming(&function.instructions, number);
            if named.is_empty() {
                continue;
            }
            match shared.iter().find(|(known, _)| *known == name) {
                Some((_, pin)) => {
                    let opened = MapData::from_pin(pin);
                    let opened = opened.map_err(|error| failed("open a shared map", &error))?;
                    let fd = opened.fd().as_fd().as_raw_fd();
                    named
                        .iter()
                        .for_each(|at| name_map(&mut instructions[*at], fd));
                    held.push(opened);
                }
                None => drop(own.insert(name.clone(), Own { name, map, named })),
            }
        }
        let (section, cookie) = static_at(object).ok_or_else(|| missing("static", COOKIE))?;
        let mut take = |name: &str| own.remove(name).ok_or_else(|| missing("map", name));
        let (listeners, statics) = (take(LISTENERS)?, take(&section)?);
        match own.into_keys().next() {
            Some(name) => Err(missing("use in an instance for", &name)),
            None => Ok(Self {
                license: program.license.clone(),
                instructions,
                _shared: held,
                listeners,
                statics,
                cookie,
            }),
        }
    }

    /// An instance, and its map of listeners.
    pub(in crate::ebpf) fn load(
        &self,
        netns: NetnsCookie,
    ) -> Result<(OwnedFd, MapData), InterceptError> {
        let (listeners, statics) = (self.listeners.make()?, self.statics.make()?);
        let mut value = self.statics.map.data().to_vec();
        let place = value.get_mut(self.cookie..self.cookie + size_of::<NetnsCookie>());
        place
            .ok_or_else(|| missing("room for", COOKIE))?
            .copy_from_slice(&netns.to_ne_bytes());
        kernel::fill_for_ever(statics.fd().as_fd(), &mut value)
            .map_err(|error| failed("tell sk_lookup its namespace", &error))?;
        let mut instructions = self.instructions.clone();
        for (own, map) in [(&self.listeners, &listeners), (&self.statics, &statics)] {
            let fd = map.fd().as_fd().as_raw_fd();
            own.named
                .iter()
                .for_each(|at| name_map(&mut instructions[*at], fd));
        }
        // The program holds its maps.
        let program = kernel::load_sk_lookup(PROGRAM, &instructions, &self.license);
        let program = program.map_err(|error| failed("load sk_lookup", &error))?;
        Ok((program, listeners))
    }
}

impl Own {
    fn make(&self) -> Result<MapData, InterceptError> {
        let made = MapData::create(self.map.clone(), &self.name, None);
        made.map_err(|error| failed(&format!("make {}", self.name), &error))
    }
}

/// The kernel's `struct bpf_insn`: code, two registers, offset, immediate value.
fn word(instruction: &bpf_insn) -> u64 {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    u64::from(instruction.code)
        | u64::from(registers) << 8
        | u64::from(instruction.off.cast_unsigned()) << 16
        | u64::from(instruction.imm.cast_unsigned()) << 32
}

fn naming(instructions: &[bpf_insn], map: i32) -> Vec<usize> {
    let names = |instruction: &bpf_insn| {
        instruction.code == LOAD_WIDE
            && matches!(instruction.src_reg(), MAP | MAP_VALUE)
            && instruction.imm == map
    };
    let all = instructions.iter().enumerate();
    all.filter(|(_, instruction)| names(instruction))
        .map(|(at, _)| at)
        .collect()
}

fn name_map(instruction: &mut u64, fd: i32) {
    *instruction = *instruction & u64::from(u32::MAX) | u64::from(fd.cast_unsigned()) << 32;
}

/// The section that the cookie is in, and where.
fn static_at(object: &[u8]) -> Option<(String, usize)> {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
    let file = object::File::parse(object).ok()?;
    let symbol = file.symbol_by_name(COOKIE)?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    Some((
        section.name().ok()?.to_owned(),
        usize::try_from(symbol.address()).ok()?,
    ))
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template")
            .field("instructions", &self.instructions.len())
            .finish_non_exhaustive()
    }
}
