"""Runs the shell steps of an example of `docs/ci` as its service would: RUNNER FILE, the project's settings on stdin.

Settings are JSON: `vars` and `secrets` become what the file asks for, `environment` is what the service itself sets.
Whatever the file uses and this does not know is an error, so that no step is left out.
"""
import json, os, re, subprocess, sys, tempfile

import yaml

service, path = sys.argv[1:]
text = open(path).read()
settings = json.load(sys.stdin)
work = tempfile.mkdtemp(dir=os.environ["HOME"])
environment = {**os.environ, **settings["environment"]}


def run(shell, script, env):
    print(f"+ {service}: {shell}", flush=True)
    code = subprocess.run([*shell, script], env=env, cwd=work, stdin=subprocess.DEVNULL).returncode
    if code:
        sys.exit(code)


def github():
    def filled(value):
        found = lambda m: settings[m[1]][m[2]]
        value = re.sub(r"\$\{\{ (vars|secrets)\.([A-Z0-9_]+) \}\}", found, str(value))
        assert "${{" not in value, value
        return value

    def known(thing, *names):
        assert set(thing) <= set(names), set(thing) - set(names)

    workflow = yaml.safe_load(text)
    # YAML 1.1 reads `on` as true.
    known(workflow, "name", True, "permissions", "jobs")
    assert workflow["permissions"]["id-token"] == "write"
    environment.update(RUNNER_TEMP=work, GITHUB_PATH=f"{work}/path")
    (job,) = workflow["jobs"].values()
    known(job, "runs-on", "timeout-minutes", "env", "steps")
    for step in job["steps"]:
        known(step, "name", "env", "run")
        env = {**environment, **{k: filled(v) for d in (job["env"], step.get("env", {})) for k, v in d.items()}}
        if os.path.exists(f"{work}/path"):
            env["PATH"] = ":".join([*open(f"{work}/path").read().split(), env["PATH"]])
        run(["bash", "-e", "-c"], filled(step["run"]), env)


def gitlab():
    (job,) = yaml.safe_load(text).values()
    assert set(job) == {"stage", "image", "timeout", "id_tokens", "before_script", "script"}, set(job)
    assert set(job["id_tokens"]) == {"GITLAB_OIDC_TOKEN"}
    env = {**environment, **settings["vars"]}
    # A secret of type File is the path of one that everybody may read.
    key = f"{work}/DEPLOY_SSH_KEY"
    with open(key, "w") as file:
        file.write(settings["secrets"]["DEPLOY_SSH_KEY"])
    os.chmod(key, 0o666)
    env["DEPLOY_SSH_KEY"] = key
    run(["bash", "-eo", "pipefail", "-c"], "\n".join([*job["before_script"], *job["script"]]), env)


def jenkins():
    block = re.search(r"environment \{\n(.*?)\n    \}", text, re.S)[1]
    env = dict(environment)
    for line in block.splitlines():
        name, example = re.fullmatch(r" +([A-Z0-9_]+) = '(.+)'", line).groups()
        env[name] = settings["vars"][name]
    steps = re.findall(r"sh '''\n(.*?)'''", text, re.S)
    assert len(steps) == len(re.findall(r"\bsh\b ['\"]", text)) == 2
    for variable in re.findall(r"(?:variable|keyFileVariable): '(\w+)'", text):
        credential = f"{work}/{variable}"
        with open(os.open(credential, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(settings["secrets"][variable])
        env[variable] = credential
    for step in steps:
        # In ''' … ''' Groovy reads a backslash before a newline as nothing; so does sh.
        run(["sh", "-xe", "-c"], step, env)


{"github": github, "gitlab": gitlab, "jenkins": jenkins}[service]()
