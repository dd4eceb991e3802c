#!/usr/bin/env python3
"""Makes a container image without a container engine: image.py BROKER IMAGE.tar

IMAGE.tar is an OCI image layout in a tar file, as `skopeo copy oci-archive:IMAGE.tar docker://…`, `podman load -i` and
`ctr image import` take it. In it lie the program, the libraries that it needs (libc and what belongs to it) and the public
certificate authorities of the machine where this runs; no shell, and nobody but the user `broker` (uid 65532).
The same input makes the same image, bit by bit.
"""
import gzip, hashlib, io, json, platform, subprocess, sys, tarfile

UID = 65532
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def libraries(program):
    """Returns the paths of the libraries, which this machine's loader knows without any configuration."""
    found = {}
    for line in subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.splitlines():
        name, _, rest = line.strip().partition(" => ")
        if name.startswith("/"):  # the loader itself
            found[name.split()[0]] = name.split()[0]
        elif rest:
            path = rest.rsplit(" (", 1)[0]
            found[path] = path
    return found


def layer(program):
    out = io.BytesIO()
    made = set()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(path, data=None, mode=0o755, uid=0):
            parts = path.strip("/").split("/")
            for n in range(1, len(parts)):
                above = "/".join(parts[:n])
                if above not in made:
                    add(above)
            entry = tarfile.TarInfo("/".join(parts))
            entry.mode, entry.uid, entry.gid = mode, uid, uid
            if data is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(data)
            made.add(entry.name)
            tar.addfile(entry, io.BytesIO(data or b""))

        add("etc/passwd", f"root:x:0:0::/:\nbroker:x:{UID}:{UID}::/home/broker:\n".encode(), 0o644)
        add("etc/group", f"root:x:0:\nbroker:x:{UID}:\n".encode(), 0o644)
        add("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", 0o644)
        add(CERTIFICATES, open(CERTIFICATES, "rb").read(), 0o644)
        add("home/broker", mode=0o700, uid=UID)
        add("tmp", mode=0o1777)
        for name, path in sorted(libraries(program).items()):
            add(name, open(path, "rb").read())
        add("usr/bin/broker", open(program, "rb").read())
    return out.getvalue()


def main(program, image):
    plain = layer(program)
    packed = gzip.compress(plain, compresslevel=6, mtime=0)
    blobs = {}

    def blob(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def document(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/broker"],
            "Env": ["PATH=/usr/bin", "HOME=/home/broker", f"SSL_CERT_FILE={CERTIFICATES}"],
            "User": f"{UID}:{UID}",
            "WorkingDir": "/home/broker",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(document(config), "config.v1+json"),
        "layers": [blob(packed, "layer.v1.tar+gzip")],
    }
    top = {**blob(document(manifest), "manifest.v1+json"), "platform": {"architecture": architecture, "os": "linux"}}
    top["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    files = {
        "oci-layout": document({"imageLayoutVersion": "1.0.0"}),
        "index.json": document(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [top]}
        ),
        **{f"blobs/sha256/{digest}": data for digest, data in sorted(blobs.items())},
    }
    with tarfile.open(image, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    print(f"{image}: {top['digest']}, {len(packed) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: image.py BROKER IMAGE.tar")
    main(*sys.argv[1:])
