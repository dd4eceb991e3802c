//! Terraform with the AWS provider, where both are on the machine: neither comes from a registry that `tests/run` has.

use std::path::Path;

use crate::support::{World, sdk};

/// Where providers lie that were put on the machine beforehand.
const PROVIDERS: &str = "/opt/tf-plugins";

const MAIN: &str = r#"
terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}
provider "aws" {}
provider "aws" {
  alias   = "audit"
  profile = "audit"
}
data "aws_caller_identity" "default" {}
data "aws_caller_identity" "audit" { provider = aws.audit }
output "arns" { value = "${data.aws_caller_identity.default.arn} ${data.aws_caller_identity.audit.arn}" }
"#;

#[test]
fn terraform_has_the_default_role_and_the_others_by_name() {
    if sandbox::isolated!() {
        return;
    }
    if !Path::new("/usr/local/bin/terraform").exists() || !Path::new(PROVIDERS).exists() {
        println!("Terraform or its AWS provider is absent here, so this was not tried");
        return;
    }
    let _reachable = sdk("python/bin/python");
    let mut world = World::fresh_home();
    world.plant("work/main.tf", MAIN, 0o644);
    let mirror = format!("provider_installation {{ filesystem_mirror {{ path = \"{PROVIDERS}\" }} }}\n");
    let rc = world.plant("terraform.rc", mirror, 0o644);
    for transport in ["auto", "tcp", "file"] {
        let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", transport]);
        let script = "cd work && terraform init -no-color >&2 && terraform apply -auto-approve -no-color >&2 && \
                      terraform output -raw arns; status=$?; rm -rf .terraform* terraform.tfstate*; exit $status";
        let mut terraform = world.on_host("sh", &["-c", script]);
        terraform.envs(&tunnel.environment).env("TF_CLI_CONFIG_FILE", &rc).env("CHECKPOINT_DISABLE", "1");
        let output = world.run(terraform);
        let arns = format!("{} {}", World::arn("Developer"), World::arn("Auditor"));
        assert_eq!(output.stdout(), arns, "{transport}: {output}");
        tunnel.stop(&mut world);
        world.assert_clean();
    }
}
