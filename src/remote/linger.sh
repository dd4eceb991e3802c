# What the helper does at its end, where something may stay (`--linger`). Goes before `helper.sh`, by the same rules.

# What the end does with our directory: it goes, unless role credentials may stay (G: how many seconds at most, then each
# file with the seconds that it was good for at T). R tells for how long some do. What leads to us goes at once. It is done
# from inside the directory, so that nothing is touched of a helper that takes the place meanwhile.
part() {
  R=0;
  [ -n "$D" ] && [ -n "$G" ] || { wipe; return; };
  i=$(date +%s);
  i=$((i - T));
  [ "$i" -ge 0 ] || i=0;
  set -- $G;
  m=$1;
  shift;
  l=;
  while [ "$#" -gt 1 ]; do
    s=$(($2 - i));
    [ "$s" -le "$m" ] || s=$m;
    if [ "$s" -gt 0 ] && [ -s "$D/$1" ]; then
      l="$l $s $1";
      [ "$s" -le "$R" ] || R=$s;
    fi;
    shift 2;
  done;
  [ "$R" != 0 ] || { wipe; return; };
  (
    cd "$D" && IFS= read -r o < .owner && [ "$o" = "$N" ] || exit 1;
    set +f;
    for t in token-* role-* s .new; do
      case "$l " in
        (*" $t "*) true;;
        (*) rm -f "./$t";;
      esac;
    done;
    set -f;
    outlive $l </dev/null >/dev/null &
    printf "%s\n" "$!" "$((T + i + R))" > .timer;
    exit 0;
  ) || R=0;
  D=;
  return 0;
};

# Removes each file when its seconds are over, and all with the last, however we ended. Whoever takes the place, or removes
# it, ends this by USR1; the end of the host, or of the session where that ends all of its processes, removes at once.
outlive() {
  trap "kill -KILL \$!; exit 0" USR1;
  trap "kill -KILL \$!; wipe; exit 0" TERM;
  trap "" HUP INT PIPE;
  cd /;
  l=$*;
  while [ -n "$l" ]; do
    set -- $l;
    m=$1;
    while [ "$#" -gt 1 ]; do
      [ "$1" -ge "$m" ] || m=$1;
      shift 2;
    done;
    sleep "$m" &
    wait "$!";
    is_ours || exit 0;
    set -- $l;
    l=;
    while [ "$#" -gt 1 ]; do
      s=$(($1 - m));
      if [ "$s" -gt 0 ]; then
        l="$l $s $2";
      else
        (cd "$D" && IFS= read -r o < .owner && [ "$o" = "$N" ] && rm -f "./$2");
      fi;
      shift 2;
    done;
  done;
  wipe;
};

# Whether what a helper left in directory $1 waits for its end. Leaves the number of the process that sees to it in i:
# only where it is certain to be that one, as it is sent a signal.
lingers() {
  [ ! -h "$1" ] || return 1;
  o=;
  i=;
  IFS= read -r o < "$1/.owner";
  IFS= read -r i < "$1/.timer";
  case $i in
    (""|*[!0-9]*) return 1;;
  esac;
  tr "\000" " " < "/proc/$i/cmdline" | grep -q "a=${o%????????????????}; b=";
};
