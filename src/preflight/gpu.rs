//! The check `gpu`: a container sees the GPUs that the job was given.

use super::{CheckNote, CheckProblem};
use crate::fault::Cause;
use crate::task::gpu_probe::{GpuProbe, ListedGpu, gpu_probe};
use crate::task::{ContainerSpec, TaskContext};

/// Lists the GPUs in a container, and notes their models. `None` if tasks get none.
///
/// # Errors
/// When the driver's program fails, or doesn't list each of the job's GPUs.
pub async fn gpus(
    context: &mut TaskContext,
    plan: &ContainerSpec,
) -> Option<Result<CheckNote, CheckProblem>> {
    let probed = gpu_probe(context, plan).await?;
    Some(match probed {
        GpuProbe::Listed(listed) => found(context, &listed),
        GpuProbe::Broken { cause, said } => Err(CheckProblem::of(cause, said)),
        GpuProbe::NotTried(why) => Ok(CheckNote::WorkedAround(
            format!("whether a container sees them was not tried, because {why}"),
            "if tasks need GPUs, give the image what its driver's programs need (for NVIDIA's: glibc)"
                .to_owned(),
        )),
    })
}

fn found(context: &mut TaskContext, listed: &[ListedGpu]) -> Result<CheckNote, CheckProblem> {
    let ids = context.gpus.given().iter().map(|gpu| gpu.id.as_str());
    let models = models_of(&ids.collect::<Vec<_>>(), listed).map_err(|missing| {
        let seen: Vec<&str> = listed.iter().map(|gpu| gpu.uuid.as_str()).collect();
        let seen = match &seen[..] {
            [] => "none".to_owned(),
            seen => seen.join(", "),
        };
        let said = format!(
            "a container does not see GPU `{missing}`, which the job was given; those that it sees: {seen}"
        );
        CheckProblem::of(Cause::Gpu, said)
    })?;
    context
        .gpus
        .set_models(models.into_iter().map(Some).collect());
    let gpus = context.gpus.summary().unwrap_or_default();
    Ok(CheckNote::Fine(format!("{gpus}, visible in a container")))
}

/// The model of each GPU, or the first that isn't listed.
fn models_of(ids: &[&str], listed: &[ListedGpu]) -> Result<Vec<String>, String> {
    let model = |id: &&str| {
        let gpu = listed.iter().find(|gpu| is_it(gpu, id));
        gpu.map(|gpu| gpu.model.clone())
            .ok_or_else(|| (*id).to_owned())
    };
    ids.iter().map(model).collect()
}

/// Whether this is the GPU that the job knows by `id`: its UUID, the beginning of that, or its number.
fn is_it(gpu: &ListedGpu, id: &str) -> bool {
    match id.parse::<usize>() {
        Ok(number) => gpu.number == Some(number),
        // Older drivers name a part by its GPU's UUID and two numbers, which HTCondor may not.
        Err(_) if id.contains('/') => gpu.uuid == id || gpu.uuid.starts_with("MIG-"),
        Err(_) => gpu.uuid.starts_with(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(rows: &[(Option<usize>, &str, &str)]) -> Vec<ListedGpu> {
        let rows = rows.iter();
        rows.map(|&(number, uuid, model)| ListedGpu {
            number,
            uuid: uuid.to_owned(),
            model: model.to_owned(),
        })
        .collect()
    }

    #[test]
    fn gpus_are_found_by_uuid_its_beginning_or_number() {
        let listed = listed(&[
            (Some(0), "GPU-a0223334-55", "A"),
            (None, "MIG-77", "A MIG 1g"),
            (Some(1), "GPU-b1223334-66", "B"),
        ]);
        for (ids, models) in [
            (&["GPU-b1223334", "GPU-a0223334-55"][..], &["B", "A"][..]),
            (&["1"], &["B"]),
            (&["MIG-77"], &["A MIG 1g"]),
        ] {
            let found = models_of(ids, &listed).expect("listed");
            assert_eq!(found, models);
        }
        let missing = models_of(&["GPU-a0223334", "GPU-c2"], &listed);
        assert_eq!(missing, Err("GPU-c2".to_owned()));
        assert_eq!(models_of(&["2"], &listed), Err("2".to_owned()));
    }
}
