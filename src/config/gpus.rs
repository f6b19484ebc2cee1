//! The GPUs that the job was given, and how many of them each task gets. HTCondor tells a job its GPUs in
//! variables and in the machine ad; outside of HTCondor the variables of the drivers do.

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::path::Path;

use super::environment::Environment;
use super::problem::ConfigProblem;
use super::reader::{GpuRequest, VariableReader};
use super::variables as var;

/// The maker of a GPU, which decides about flags, variables and programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuVendor {
    Nvidia,
    Amd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// As `CUDA_VISIBLE_DEVICES` or `ROCR_VISIBLE_DEVICES` takes it: a UUID, the beginning of one, or a number.
    pub id: String,
    /// The whole UUID, if HTCondor gave it.
    pub uuid: Option<String>,
    /// `NVIDIA A100-SXM4-40GB`, for people.
    pub model: Option<String>,
}

/// Some GPUs of one vendor; none, to hide the job's GPUs from a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuSet {
    pub vendor: GpuVendor,
    pub gpus: Vec<Gpu>,
    /// The job's `CUDA_DEVICE_ORDER`, without which numbers may mean other GPUs.
    pub order: Option<String>,
}

/// The job's GPUs, and how many each task gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskGpus {
    /// `None` if the job was given none.
    pub given: Option<GpuSet>,
    pub each: usize,
}

/// What HTCondor's machine ad says of the slot's GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdGpus {
    /// `AssignedGPUs`
    pub assigned: Option<String>,
    /// `GPUs_DeviceName`
    pub model: Option<String>,
}

impl GpuSet {
    /// The variables by which a program sees these GPUs and no other. `HIP_VISIBLE_DEVICES` isn't among AMD's:
    /// it counts only what `ROCR_VISIBLE_DEVICES` leaves.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let ids = joined(self.gpus.iter().map(|gpu| gpu.id.as_str()));
        match self.vendor {
            GpuVendor::Amd => vec![("ROCR_VISIBLE_DEVICES".to_owned(), ids)],
            GpuVendor::Nvidia => {
                let order = self.order.clone();
                let order = order.map(|order| ("CUDA_DEVICE_ORDER".to_owned(), order));
                let mut variables = vec![
                    ("CUDA_VISIBLE_DEVICES".to_owned(), ids),
                    (NVIDIA_DEVICES.to_owned(), self.nvidia_devices()),
                ];
                variables.extend(order);
                variables
            }
        }
    }

    /// The value of [`NVIDIA_DEVICES`].
    #[must_use]
    pub fn nvidia_devices(&self) -> String {
        if self.gpus.is_empty() {
            return "none".to_owned();
        }
        let uuids = self.gpus.iter();
        joined(uuids.map(|gpu| gpu.uuid.as_deref().unwrap_or(&gpu.id)))
    }
}

/// The variable that NVIDIA's container tools read, on the machine as well as in a container.
pub const NVIDIA_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// A list with each id once: CUDA sees no device at all if one is named twice, and HTCondor may give a job
/// several shares of one GPU.
fn joined<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    let mut once: Vec<&str> = Vec::new();
    for id in ids {
        if !once.contains(&id) {
            once.push(id);
        }
    }
    once.join(",")
}

/// The GPUs that the job was given. HTCondor's list decides which, even an empty one; the driver's variable
/// tells their names as the driver takes them.
pub(super) fn given(environment: &Environment, ad: &AdGpus) -> Option<GpuSet> {
    given_with(environment, ad, &|device| Path::new(device).exists())
}

fn given_with(
    environment: &Environment,
    ad: &AdGpus,
    has_device: &dyn Fn(&str) -> bool,
) -> Option<GpuSet> {
    let value = |name: &str| {
        environment
            .get(OsStr::new(name))
            .and_then(|value| value.to_str())
    };
    let list = |name: &str| value(name).and_then(ids);
    let assigned = value("_CONDOR_AssignedGPUs").or(ad.assigned.as_deref());
    let assigned = assigned.map(|text| ids(text).unwrap_or_default());
    let cuda = list("CUDA_VISIBLE_DEVICES");
    let rocr = list("ROCR_VISIBLE_DEVICES").or_else(|| list("HIP_VISIBLE_DEVICES"));
    let long = list(NVIDIA_DEVICES);

    let vendor = vendor(
        [&cuda, &rocr].map(Option::as_ref),
        ad.model.as_deref(),
        has_device,
    );
    let said = match vendor {
        GpuVendor::Nvidia => cuda.or_else(|| long.clone()),
        // HTCondor 23.9 sets CUDA's variable for AMD's, too.
        GpuVendor::Amd => rocr.or(cuda),
    };
    let names = match assigned {
        // A list of another length is somebody else's.
        Some(assigned) => said
            .filter(|said| said.len() == assigned.len())
            .unwrap_or(assigned),
        None => said?,
    };
    if names.is_empty() {
        return None;
    }
    let long = long.filter(|long| vendor == GpuVendor::Nvidia && long.len() == names.len());
    let uuid = |index: usize| Some(long.as_ref()?.get(index)?.clone());
    let gpus = names.into_iter().enumerate().map(|(index, id)| Gpu {
        id,
        uuid: uuid(index),
        model: ad.model.clone(),
    });
    Some(GpuSet {
        vendor,
        gpus: gpus.collect(),
        order: value("CUDA_DEVICE_ORDER").map(str::to_owned),
    })
}

/// Slurm and others set the variables of all vendors, HTCondor always CUDA's: then the model and the
/// machine's devices tell.
fn vendor(
    lists: [Option<&Vec<String>>; 2],
    model: Option<&str>,
    has_device: &dyn Fn(&str) -> bool,
) -> GpuVendor {
    let is_amds = |model: &str| {
        let model = model.to_ascii_lowercase();
        ["amd", "radeon", "instinct"]
            .iter()
            .any(|word| model.contains(word))
    };
    let [cuda, rocr] = lists.map(|list| list.filter(|list| !list.is_empty()));
    let is_amd = match (cuda, rocr, model) {
        (None, Some(_), _) => true,
        (_, _, Some(model)) => is_amds(model),
        _ => has_device("/dev/kfd") && !has_device("/dev/nvidiactl"),
    };
    if is_amd {
        GpuVendor::Amd
    } else {
        GpuVendor::Nvidia
    }
}

/// The ids of a list between commas; `None` for `all`, which names none. Ids after one that is not valid
/// don't count, as for CUDA; HTCondor, NVIDIA and Slurm have such words for a job without GPUs.
fn ids(list: &str) -> Option<Vec<String>> {
    const NONE: [&str; 6] = ["", "-1", "10000", "none", "void", "nodevfiles"];
    if list.trim().eq_ignore_ascii_case("all") {
        return None;
    }
    let ids = list.split(',').map(str::trim);
    let valid = ids.take_while(|id| !NONE.contains(&id.to_ascii_lowercase().as_str()));
    Some(valid.map(driver_id).collect())
}

/// HTCondor may number GPUs as `CUDA0`, where the driver takes `0`.
fn driver_id(id: &str) -> String {
    let number = ["CUDA", "OCL", "HIP"]
        .iter()
        .find_map(|kind| id.strip_prefix(kind));
    let is_number =
        |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    number.filter(is_number).unwrap_or(id).to_owned()
}

/// The most tasks that may run at once if each is to have a GPU of its own; `None` for no such limit.
pub(super) fn most_slots(given: Option<&GpuSet>, request: GpuRequest) -> Option<NonZeroU32> {
    let count = u32::try_from(given?.gpus.len()).unwrap_or(u32::MAX);
    match request {
        GpuRequest::None => None,
        GpuRequest::Auto => NonZeroU32::new(count),
        // A request that can't be met is reported when the GPUs are shared out.
        GpuRequest::Each(each) => NonZeroU32::new(count / each).or(Some(NonZeroU32::MIN)),
    }
}

/// Shares the job's GPUs out among the slots.
pub(super) fn share_out(
    reader: &mut VariableReader<'_>,
    given: Option<GpuSet>,
    request: GpuRequest,
    slots: NonZeroU32,
) -> TaskGpus {
    let count = given.as_ref().map_or(0, |given| given.gpus.len());
    let slots = usize::try_from(slots.get()).unwrap_or(usize::MAX);
    let each = match request {
        GpuRequest::None => 0,
        GpuRequest::Auto => (count / slots).max(count.min(1)),
        GpuRequest::Each(each) => usize::try_from(each.get()).unwrap_or(usize::MAX),
    };
    let needed = each.saturating_mul(slots);
    let (gpus, tasks) = (var::TASK_GPUS.name, var::MAX_CONCURRENT_TASKS.name);
    if let GpuRequest::Each(_) = request
        && needed > count
    {
        reader.problems.push(ConfigProblem::Conflict(format!(
            "`{gpus}` is `{each}`: with {slots} at once (`{tasks}`) tasks need {}, and the job was given {count}; \
             request more (`request_gpus`), or set a smaller number or `auto`",
            counted(needed)
        )));
    } else if needed > count && each > 0 {
        reader.warnings.push(format!(
            "`{tasks}` is {slots} and the job was given {}, so tasks share: set `{tasks}` to `auto`, or to at most \
             {count}, to give each task its own",
            counted(count)
        ));
    } else if needed < count && each > 0 {
        reader.warnings.push(format!(
            "{} of the {count} that the job was given will not be used: tasks get {each} each, at most {slots} run \
             at once (`{gpus}`, `{tasks}`)",
            counted(count - needed)
        ));
    }
    TaskGpus { given, each }
}

fn counted(gpus: usize) -> String {
    let plural = if gpus == 1 { "" } else { "s" };
    format!("{gpus} GPU{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_DEVICE: &dyn Fn(&str) -> bool = &|_| false;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let pairs = variables.iter();
        pairs
            .map(|&(name, value)| (name.into(), value.into()))
            .collect()
    }

    fn found(
        variables: &[(&str, &str)],
        assigned: Option<&str>,
        model: Option<&str>,
    ) -> Option<GpuSet> {
        let ad = AdGpus {
            assigned: assigned.map(str::to_owned),
            model: model.map(str::to_owned),
        };
        given_with(&environment(variables), &ad, NO_DEVICE)
    }

    #[track_caller]
    fn assert_gpus(set: Option<GpuSet>, vendor: GpuVendor, ids: &[&str]) -> GpuSet {
        let set = set.expect("GPUs");
        let found: Vec<&str> = set.gpus.iter().map(|gpu| gpu.id.as_str()).collect();
        assert_eq!((set.vendor, &found[..]), (vendor, ids));
        set
    }

    /// As HTCondor 23.9 told a job on a pool with simulated GPUs.
    #[test]
    fn htcondors_gpus_are_known_by_short_and_long_names() {
        let set = found(
            &[
                ("_CONDOR_AssignedGPUs", "GPU-a0223334,GPU-b1223334"),
                ("CUDA_VISIBLE_DEVICES", "GPU-a0223334,GPU-b1223334"),
                ("GPU_DEVICE_ORDINAL", "GPU-a0223334,GPU-b1223334"),
                ("NVIDIA_VISIBLE_DEVICES", "GPU-a0223334-55,GPU-b1223334-66"),
            ],
            Some("GPU-a0223334,GPU-b1223334"),
            Some("GeForce GTX 480"),
        );
        let set = assert_gpus(set, GpuVendor::Nvidia, &["GPU-a0223334", "GPU-b1223334"]);
        assert_eq!(
            set.variables(),
            [
                ("CUDA_VISIBLE_DEVICES", "GPU-a0223334,GPU-b1223334"),
                ("NVIDIA_VISIBLE_DEVICES", "GPU-a0223334-55,GPU-b1223334-66"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert_eq!(set.gpus[1].model.as_deref(), Some("GeForce GTX 480"));
    }

    #[test]
    fn htcondors_list_counts_before_other_variables() {
        let elsewhere = &[("CUDA_VISIBLE_DEVICES", "0,1,2,3")];
        let of_ad = found(elsewhere, Some("CUDA1"), None);
        assert_gpus(of_ad, GpuVendor::Nvidia, &["1"]);
        assert_eq!(found(elsewhere, Some(""), None), None);
        let none = &[("_CONDOR_AssignedGPUs", ""), ("CUDA_VISIBLE_DEVICES", "0")];
        assert_eq!(found(none, None, None), None);
        let numbered = &[
            ("_CONDOR_AssignedGPUs", "CUDA0, CUDA3"),
            ("CUDA_VISIBLE_DEVICES", "0,3"),
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ];
        let set = assert_gpus(found(numbered, None, None), GpuVendor::Nvidia, &["0", "3"]);
        let order = ("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned());
        assert!(set.variables().contains(&order), "{set:?}");
    }

    #[test]
    fn outside_of_htcondor_the_drivers_variables_count() {
        let set = found(&[("CUDA_VISIBLE_DEVICES", "0,GPU-b")], None, None);
        assert_gpus(set, GpuVendor::Nvidia, &["0", "GPU-b"]);
        let set = found(&[("NVIDIA_VISIBLE_DEVICES", "MIG-1")], None, None);
        assert_gpus(set, GpuVendor::Nvidia, &["MIG-1"]);
        for none in ["", "-1", "10000", "none", "void", "NoDevFiles", "-1,0"] {
            let set = found(&[("CUDA_VISIBLE_DEVICES", none)], None, None);
            assert_eq!(set, None, "{none}");
        }
        // The images of NVIDIA set this whether there is a GPU or not.
        assert_eq!(
            found(&[("NVIDIA_VISIBLE_DEVICES", "all")], None, None),
            None
        );
        assert_eq!(found(&[], None, Some("NVIDIA A100")), None);
    }

    #[test]
    fn amds_gpus_are_named_to_rocr_alone() {
        for variables in [
            &[("ROCR_VISIBLE_DEVICES", "2,3")][..],
            &[("HIP_VISIBLE_DEVICES", "2,3")],
            // With both, HIP's numbers count what ROCr leaves.
            &[
                ("ROCR_VISIBLE_DEVICES", "2,3"),
                ("HIP_VISIBLE_DEVICES", "0"),
            ],
        ] {
            let set = assert_gpus(found(variables, None, None), GpuVendor::Amd, &["2", "3"]);
            let expected = ("ROCR_VISIBLE_DEVICES".to_owned(), "2,3".to_owned());
            assert_eq!(set.variables(), [expected]);
        }
        let condors = &[
            ("_CONDOR_AssignedGPUs", "HIP1"),
            ("CUDA_VISIBLE_DEVICES", "HIP1"),
        ];
        let set = found(condors, None, Some("AMD Instinct MI210"));
        assert_gpus(set, GpuVendor::Amd, &["1"]);
    }

    #[test]
    fn where_both_vendors_are_named_the_machines_devices_tell() {
        let both = environment(&[("CUDA_VISIBLE_DEVICES", "0"), ("ROCR_VISIBLE_DEVICES", "0")]);
        for (devices, vendor) in [
            (&["/dev/kfd"][..], GpuVendor::Amd),
            (&["/dev/nvidiactl"], GpuVendor::Nvidia),
            (&["/dev/nvidiactl", "/dev/kfd"], GpuVendor::Nvidia),
            (&[], GpuVendor::Nvidia),
        ] {
            let set = given_with(&both, &AdGpus::default(), &|path| devices.contains(&path));
            assert_gpus(set, vendor, &["0"]);
        }
    }

    #[test]
    fn a_gpu_is_named_once_even_if_the_job_has_two_shares_of_it() {
        let set = found(&[("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-a")], None, None);
        let set = assert_gpus(set, GpuVendor::Nvidia, &["GPU-a", "GPU-a"]);
        assert_eq!(set.variables()[0].1, "GPU-a");
    }

    #[test]
    fn a_task_without_gpus_is_told_that_it_has_none() {
        let hidden = |vendor| GpuSet {
            vendor,
            gpus: Vec::new(),
            order: None,
        };
        let values = |vendor| -> Vec<String> {
            let variables = hidden(vendor).variables().into_iter();
            variables.map(|(_, value)| value).collect()
        };
        assert_eq!(values(GpuVendor::Nvidia), ["", "none"]);
        assert_eq!(values(GpuVendor::Amd), [""]);
    }

    /// What tasks get of `count` GPUs; the problems and warnings.
    fn shared(count: usize, request: GpuRequest, slots: u32) -> (usize, Vec<String>, Vec<String>) {
        let environment = Environment::new();
        let mut reader = VariableReader::new(&environment, Vec::new());
        let list: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        let given = found(&[("CUDA_VISIBLE_DEVICES", &list.join(","))], None, None);
        let slots = NonZeroU32::new(slots).expect("not zero");
        let each = share_out(&mut reader, given, request, slots).each;
        let problems = reader.problems.iter().map(ToString::to_string).collect();
        (each, problems, reader.warnings)
    }

    fn each(number: u32) -> GpuRequest {
        GpuRequest::Each(NonZeroU32::new(number).expect("not zero"))
    }

    #[test]
    fn auto_divides_evenly_and_says_what_is_shared_or_unused() {
        for (count, slots, expected, said) in [
            (0, 4, 0, ""),
            (1, 1, 1, ""),
            (2, 2, 1, ""),
            (4, 2, 2, ""),
            (3, 2, 1, "1 GPU of the 3 that"),
            (1, 4, 1, "given 1 GPU, so tasks share"),
        ] {
            let (each, problems, warnings) = shared(count, GpuRequest::Auto, slots);
            assert_eq!(each, expected, "{count} GPUs, {slots} slots");
            assert_eq!(problems, [""; 0]);
            assert_eq!(warnings.is_empty(), said.is_empty(), "{warnings:?}");
            assert!(warnings.concat().contains(said), "{warnings:?}");
        }
    }

    #[test]
    fn more_than_the_job_was_given_is_one_error() {
        for (count, request, slots) in [(2, each(2), 2), (0, each(1), 1), (1, each(2), 1)] {
            let (_, problems, warnings) = shared(count, request, slots);
            assert_eq!((problems.len(), warnings.len()), (1, 0), "{problems:?}");
            let given = format!("the job was given {count}; request more");
            assert!(problems[0].contains(&given), "{problems:?}");
        }
        assert_eq!(shared(4, each(2), 2), (2, Vec::new(), Vec::new()));
        assert_eq!(shared(2, GpuRequest::None, 1), (0, Vec::new(), Vec::new()));
    }

    #[test]
    fn no_more_tasks_run_at_once_than_the_gpus_allow() {
        let of = |count: usize, request| {
            let list: Vec<String> = (0..count).map(|number| number.to_string()).collect();
            let given = found(&[("CUDA_VISIBLE_DEVICES", &list.join(","))], None, None);
            most_slots(given.as_ref(), request).map(NonZeroU32::get)
        };
        assert_eq!(of(0, GpuRequest::Auto), None);
        assert_eq!(of(2, GpuRequest::Auto), Some(2));
        assert_eq!(of(2, GpuRequest::None), None);
        assert_eq!(of(5, each(2)), Some(2));
        assert_eq!(of(1, each(2)), Some(1));
    }
}
