# Prints the credentials of profile $2 that lie in directory $1, if there are any, and ends. Those that `--linger` left
# go here as well when their time is over: what should have removed them may have been killed.
lying() {
  u=
  [ ! -r "$1/.timer" ] || { read -r u; read -r u; } < "$1/.timer"
  if [ -n "$u" ] && [ "$(date +%s)" -ge "$u" ]; then
    rm -f "$1"/role-*.json
  fi
  [ ! -s "$1/role-$2.json" ] || exec cat "$1/role-$2.json"
}
