# A hub as an administrator has it: local users, their own notebook server each, started by the hub as that user.
import json
import os
import sys

settings = json.loads(os.environ["TEST_HUB"])
c = get_config()  # noqa: F821
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.hub_port = 8081
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.cookie_secret_file = settings["directory"] + "/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Authenticator.allowed_users = {settings["user"]}
c.ConfigurableHTTPProxy.command = settings["proxy"]
c.ConfigurableHTTPProxy.pid_file = settings["directory"] + "/proxy.pid"
c.ConfigurableHTTPProxy.auth_token = os.urandom(16).hex()
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.environment = {
    **settings["environment"],
    "JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp",
}
c.Spawner.notebook_dir = "~"
c.JupyterHub.services = [{"name": "test", "api_token": settings["token"]}]
c.JupyterHub.load_roles = [
    {"name": "test", "services": ["test"], "scopes": ["admin:users", "admin:servers", "access:servers"]}
]
