//! The names that HTCondor matches a job's requirements against: those of the machine, of its site, and of the part
//! of the site that a glidein was sent to. A host name won't do: in a container, and on many execution points, it is
//! another one.

use std::ffi::OsStr;

use super::classad::ClassAd;
use super::environment::Environment;
use crate::ids;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineNames {
    /// `Machine` of the machine ad; without such an ad, the system's host name.
    pub machine: String,
    /// `GLIDEIN_Site`, else `OSG_SITE_NAME`.
    pub site: Option<String>,
    /// `GLIDEIN_ResourceName`
    pub resource: Option<String>,
}

impl MachineNames {
    /// The ad counts before the environment, because only the ad is matched.
    pub(super) fn find(environment: &Environment, job: &ClassAd, machine: &ClassAd) -> Self {
        let variable = |name: &str| {
            environment
                .get(OsStr::new(name))
                .and_then(|value| value.to_str())
                .map(str::to_owned)
        };
        let is_name = |name: &String| !name.is_empty();
        let glidein = |name: &str| {
            // The schedd copies what a job's own attributes ask of the machine: `$$(GLIDEIN_Site)`.
            let in_job_ad = || job.string(&format!("MATCH_{name}")).filter(is_name);
            let in_machine_ad = machine.string(name).filter(is_name);
            in_machine_ad
                .or_else(|| variable(name).filter(is_name))
                .or_else(in_job_ad)
        };
        Self {
            machine: machine
                .string("Machine")
                .filter(is_name)
                .unwrap_or_else(ids::host_name),
            site: glidein("GLIDEIN_Site").or_else(|| variable("OSG_SITE_NAME").filter(is_name)),
            resource: glidein("GLIDEIN_ResourceName"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(variables: &[(&str, &str)], job: &str, machine: &str) -> MachineNames {
        let environment = variables
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        MachineNames::find(&environment, &ClassAd::new(job), &ClassAd::new(machine))
    }

    #[test]
    fn the_machine_ad_counts_before_the_environment_and_the_job_ad_last() {
        let variables = [
            ("GLIDEIN_Site", "of-environment"),
            ("OSG_SITE_NAME", "osg"),
            ("GLIDEIN_ResourceName", ""),
        ];
        let job = "MATCH_GLIDEIN_Site = \"of-job\"\nMATCH_GLIDEIN_ResourceName = \"R-of-job\"\n";
        let machine = "Name = \"slot1_1@glidein_7@wn7\"\nMachine = \"wn7.example.org\"\n";
        let found = names(&variables, job, machine);
        assert_eq!(found.machine, "wn7.example.org");
        assert_eq!(found.site.as_deref(), Some("of-environment"));
        assert_eq!(found.resource.as_deref(), Some("R-of-job"));

        let machine = format!("{machine}GLIDEIN_Site = \"S\"\nGLIDEIN_ResourceName = \"R\"\n");
        let found = names(&variables, job, &machine);
        assert_eq!(found.site.as_deref(), Some("S"));
        assert_eq!(found.resource.as_deref(), Some("R"));
    }

    #[test]
    fn without_ads_the_host_name_and_the_name_of_osg_count() {
        let found = names(
            &[("OSG_SITE_NAME", "osg")],
            "",
            "Machine = strcat(\"a\", \"b\")\n",
        );
        assert_eq!(found.machine, ids::host_name());
        assert!(!found.machine.is_empty());
        assert_eq!((found.site.as_deref(), found.resource), (Some("osg"), None));
    }
}
