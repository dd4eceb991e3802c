# What `credential_process` runs where role credentials lie in files: sh SCRIPT DIRECTORY PROFILE PATH
if [ -s "$1/role-$2.json" ]; then
  exec cat "$1/role-$2.json"
fi
echo "broker: there are no valid credentials here at the moment; see the terminal where broker runs" >&2
exit 1
