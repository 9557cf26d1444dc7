#!/usr/bin/env bash
# A 64-bit Arm device without one: Debian for arm64 under qemu's user emulation, behind an sshd on 127.0.0.1. See README.md.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: aarch64.sh [--cache DIR] [--size SIZE] [--port PORT] COMMAND

  make          makes the device's files, where they are not there
  start         starts it, made first where that is needed; prints how ssh reaches it
  stop          ends every process of it
  status        what it is, and whether it runs (exit code 3: it does not)
  shell [TEXT]  a shell there, or one command for it
  remove        stops it, and removes what was made

  --cache DIR   where it is kept (default: $XDG_CACHE_HOME/vsparse-aarch64, or ~/.cache/vsparse-aarch64)
  --size SIZE   of its home and of its /tmp, each (default: 512M)
  --port PORT   of its sshd (default: one that is free)

Variables: SUITE (bookworm) and MIRROR (http://deb.debian.org/debian) of Debian; PYTHON (python3), whose pip takes the wheels, and
whose versions of numpy and onnxruntime they have. Exit codes: 0, 2 wrong usage, 3 something is missing here.
TEXT
}

here=$(realpath "$0")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vsparse-aarch64
size=512M
port=
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
PYTHON=${PYTHON:-python3}
PACKAGES=(python3 gcc libc6-dev libgomp1 openssh-sftp-server)
name=aarch64

say() { printf 'aarch64.sh: %s\n' "$*" >&2; }
fail() { say "$1"; exit "${2:-3}"; }
step() { say "$1" 2>&8; }

while [ $# -gt 0 ]; do
    case $1 in
        --cache | --size | --port)
            [ $# -ge 2 ] || fail "$1 needs a value; see --help" 2
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        -h | --help) usage; exit 0 ;;
        -*) fail "there is no option $1; see --help" 2 ;;
        *) break ;;
    esac
done
[ $# -ge 1 ] || { usage >&2; exit 2; }
command=$1
shift
PATH=$PATH:/usr/sbin:/sbin
case $size in *[!0-9kKmMgG]* | [!0-9]* | '') fail "--size $size is no size; write it as 512M" 2 ;; esac
case $port in *[!0-9]* | ??????*) fail "--port $port is no port; give a number from 1024 to 65535" 2 ;; esac
cache=$(realpath -m "$cache")
for path in "$here" "$cache"; do # they stand in a configuration of sshd
    case $path in *[!A-Za-z0-9/._+@=-]*) fail "$path has a character that sshd's configuration does not take; give --cache a plain path" 2 ;; esac
done
root=$cache/root
run=$cache/run # of what runs: pid of the namespaces, sshd's, keys

needs() { # program, Debian package
    command -v "$1" >/dev/null || fail "$1 is missing; install it: sudo apt-get install $2"
}

# The emulator, which must need no library: those of the root are of another processor.
emulator() {
    local program path
    for program in qemu-aarch64-static qemu-aarch64; do
        path=$(command -v "$program") || continue
        if ldd "$path" 2>&1 | grep -q 'not a dynamic\|statically linked'; then
            printf '%s' "$path"
            return
        fi
    done
    fail "qemu-aarch64-static is missing; install it: sudo apt-get install qemu-user-static"
}

# Made once ------------------------------------------------------------------------------------------------------------

# What the root is made of: it is made again where this changes.
recipe() {
    printf '%s\n' "3 $SUITE $MIRROR ${PACKAGES[*]}"
    "$PYTHON" -c '
import importlib.metadata as m
for name in ("numpy", "onnxruntime"):
    try:
        print(f"{name}=={m.version(name)}")
    except m.PackageNotFoundError:
        print(name)'
}

make_root() {
    needs "$PYTHON" python3
    local wanted made=
    wanted=$(recipe)
    [ -f "$cache/recipe" ] && made=$(cat "$cache/recipe")
    if [ -d "$root" ] && [ "$made" = "$wanted" ]; then
        return
    fi
    runs && fail "what the device is made of has changed while it runs; stop it, then start it again"
    needs debootstrap debootstrap
    needs dpkg-deb dpkg
    emulator >/dev/null
    needs unshare util-linux
    "$PYTHON" -m pip --version >/dev/null 2>&1 || fail "$PYTHON has no pip; install it: sudo apt-get install python3-pip"
    chmod -R u+w "$cache"/making-* 2>/dev/null || true
    rm -rf "$cache"/making-*
    local making
    making=$(mktemp -d "$cache/making-XXXXXX")
    : >"$cache/make.log"
    if ! build_root "$making" >>"$cache/make.log" 2>&1; then
        tail -5 "$cache/make.log" >&2
        rm -rf "$making"
        fail "the root could not be made; $cache/make.log says what failed"
    fi
    chmod -R u+w "$root" 2>/dev/null || true
    rm -rf "$root"
    mv "$making/root" "$root"
    rm -rf "$making"
    printf '%s\n' "$wanted" >"$cache/recipe"
    say "made in $SECONDS s: $(du -sh "$root" | cut -f1) in $root"
}

# Packages are unpacked, and no script of theirs is run: so it needs no root, and takes no emulation.
build_root() (
    set -e
    making=$1
    fetched=$making/fetched
    new=$making/root
    mkdir -p "$fetched" "$new"
    list=$(IFS=,; printf '%s' "${PACKAGES[*]}")
    step "fetching packages of Debian $SUITE for arm64 …"
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(unshare --user --map-root-user)
    "${as_root[@]}" debootstrap --download-only --arch=arm64 --variant=minbase --include="$list" "$SUITE" "$fetched" "$MIRROR"
    step "unpacking them …"
    for folder in bin sbin lib; do # as Debian merges them
        mkdir -p "$new/usr/$folder"
        ln -s "usr/$folder" "$new/$folder"
    done
    for package in "$fetched"/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$new" --no-same-owner --keep-directory-symlink
        dpkg-deb --show --showformat '${Package} ${Version}\n' "$package"
    done | tee "$making/packages"
    mkdir -p "$new/etc/vsparse"
    sort "$making/packages" >"$new/etc/vsparse/packages"
    [ -e "$new/usr/bin/cc" ] || ln -s gcc "$new/usr/bin/cc"
    [ -e "$new/usr/bin/awk" ] || ln -s mawk "$new/usr/bin/awk"
    printf '%s\n' "root:x:0:0:root:/root:/bin/bash" >"$new/etc/passwd"
    printf '%s\n' "root:x:0:" >"$new/etc/group"
    printf '%s\n' "127.0.0.1 localhost $name" >"$new/etc/hosts"
    printf '%s\n' "$name" >"$new/etc/hostname"
    mkdir -p "$new/proc" "$new/dev" "$new/tmp" "$new/root" "$new/run" "$new/sys"
    rm -rf "${new:?}/usr/share/doc" "$new/usr/share/man" "$new/usr/share/locale" "$new/var/cache/apt"

    step "fetching numpy and onnxruntime for aarch64 …"
    version=$(readlink "$new/usr/bin/python3" | sed 's/python//')
    tags=()
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
        tags+=(--platform "${tag}_aarch64")
    done
    wheels=$making/wheels
    mapfile -t modules < <(recipe | tail -n +2)
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version "$version" --implementation cp \
        "${tags[@]}" --dest "$wheels" "${modules[@]}"
    site=$new/usr/local/lib/python$version/dist-packages
    mkdir -p "$site"
    for wheel in "$wheels"/*.whl; do
        "$PYTHON" -m zipfile -e "$wheel" "$site"
        basename "$wheel"
    done >"$new/etc/vsparse/wheels"
    cat "$new/etc/vsparse/wheels"

    step "compiling Python's own files there …"
    inside "$new" rw python3 -m compileall -q -j 2 -x '/(test|tests|idlelib|lib2to3|turtledemo|ensurepip|distutils|pip)/' \
        "/usr/lib/python$version" "/usr/local/lib/python$version" || true
    test "$(inside "$new" ro python3 -c 'import onnxruntime, platform; print(platform.machine())' 2>/dev/null)" = aarch64
)

# Namespaces of its own: what runs there sees Arm alone, and ends with them -------------------------------------------------

# ELF for 64-bit Arm, executable or shared, of any ABI.
MAGIC='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
MASK='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'

# Runs a program in namespaces that end with it: root, ro or rw, program and its arguments.
inside() {
    unshare --user --map-root-user --mount --uts --ipc --pid --fork --kill-child=KILL --mount-proc -- \
        "$here" --cache "$cache" --size "$size" within "$@"
}

within() {
    local root=$1 mode=$2 file
    shift 2
    mount --make-rprivate / 2>/dev/null || true
    # Linux 6.7 and newer have a binfmt_misc for each user namespace; an older one that knows aarch64 already does as well.
    if mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null; then
        printf '%s' ":$name:M::$MAGIC:$MASK:$(emulator):F" >/proc/sys/fs/binfmt_misc/register
    fi
    mount --bind "$root" "$root"
    mount -t tmpfs -o "size=$size,mode=700" tmpfs "$root/root"
    mount -t tmpfs -o "size=$size,mode=1777" tmpfs "$root/tmp"
    mount -t tmpfs -o size=16M,mode=755 tmpfs "$root/run"
    mount -t tmpfs -o size=1M,mode=755 tmpfs "$root/dev"
    for file in null zero full random urandom tty; do
        : >"$root/dev/$file"
        mount --bind "/dev/$file" "$root/dev/$file"
    done
    mkdir -m 1777 "$root/dev/shm"
    mount -t tmpfs -o "size=$size,mode=1777" tmpfs "$root/dev/shm"
    ln -s /proc/self/fd "$root/dev/fd"
    ln -s /proc/self/fd/0 "$root/dev/stdin"
    ln -s /proc/self/fd/1 "$root/dev/stdout"
    ln -s /proc/self/fd/2 "$root/dev/stderr"
    mount -t proc proc "$root/proc" # and no /sys: that of another processor crashes onnxruntime
    [ "$mode" = rw ] || mount -o remount,bind,ro "$root"
    hostname "$name"
    chroot "$root" /bin/true 2>/dev/null || fail "this kernel does not start programs for aarch64, and lets no user namespace say how \
(before Linux 6.7); install the emulator for all: sudo apt-get install qemu-user-static binfmt-support"
    if [ $# -eq 0 ]; then
        # The first process of the namespaces: it takes in what loses its parent.
        : >"$run/ready"
        exec bash -c 'trap "exit 0" TERM; while :; do sleep 1000000 & wait; done'
    fi
    exec chroot "$root" /usr/bin/env -i "${ENVIRONMENT[@]}" "$@"
}

ENVIRONMENT=(HOME=/root USER=root LOGNAME=root SHELL=/bin/bash LANG=C.UTF-8 "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" "TERM=${TERM:-dumb}")

# The process that was started is known by its number and by when it began.
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

runs() {
    [ -f "$run/holder" ] || return 1
    local number since
    read -r number since <"$run/holder" || return 1
    [ -n "$since" ] && [ "$(began "$number")" = "$since" ]
}

entering() { # the command that enters it, into the array `enter`
    local number
    read -r number _ <"$run/holder"
    enter=(nsenter --target "$number" --user --preserve-credentials --mount --uts --ipc --pid -- chroot "$root" /usr/bin/env -i "${ENVIRONMENT[@]}")
}

start() {
    needs sshd openssh-server
    needs ssh openssh-client
    needs nsenter util-linux
    emulator >/dev/null
    make_root
    if ! runs; then
        stop
        mkdir -p "$run"
        chmod 700 "$run"
        setsid bash -c 'exec 9>&- 8>&-; exec "$@"' start unshare --user --map-root-user --mount --uts --ipc --pid --fork --kill-child=KILL \
            --mount-proc -- "$here" --cache "$cache" --size "$size" within "$root" ro </dev/null >"$run/log" 2>&1 &
        local outer=$! first i
        for i in $(seq 200); do
            [ ! -e "$run/ready" ] || break
            kill -0 "$outer" 2>/dev/null || break
            sleep 0.05
        done
        if [ ! -e "$run/ready" ]; then
            kill -KILL "$outer" 2>/dev/null || true
            sed 's/^aarch64.sh: //' "$run/log" >&2
            fail "the namespaces could not be made; as root, or where users may make them (sysctl kernel.unprivileged_userns_clone, \
kernel.apparmor_restrict_unprivileged_userns), it works"
        fi
        first=$(cut -d' ' -f1 "/proc/$outer/task/$outer/children")
        printf '%s %s\n' "$first" "$(began "$first")" >"$run/holder"
        start_sshd
    fi
    say "$(told)"
    printf 'export VSPARSE_SSH="ssh -F %s"\n' "$run/ssh_config"
}

start_sshd() {
    local key sshd tried
    sshd=$(command -v sshd) # by its whole path, or it refuses to start
    for key in host_key key; do
        ssh-keygen -q -t ed25519 -N '' -C "vsparse's emulated device" -f "$run/$key" </dev/null
    done
    cp "$run/key.pub" "$run/authorized_keys"
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd # where it drops its privileges
    for tried in $(seq 50); do
        local at=${port:-$((20000 + RANDOM % 40000))}
        cat >"$run/sshd_config" <<TEXT
ListenAddress 127.0.0.1
Port $at
HostKey $run/host_key
AuthorizedKeysFile $run/authorized_keys
PidFile $run/sshd.pid
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding no
PrintMotd no
MaxStartups 100
Subsystem sftp /usr/lib/openssh/sftp-server
ForceCommand $here --cache $cache session
TEXT
        cat >"$run/ssh_config" <<TEXT
Host $name
    HostName 127.0.0.1
    Port $at
    User $(id -un)
    IdentityFile $run/key
    IdentitiesOnly yes
    IdentityAgent none
    HostKeyAlias vsparse-$name
    UserKnownHostsFile $run/known_hosts
    StrictHostKeyChecking yes
    LogLevel ERROR
TEXT
        printf 'vsparse-%s %s\n' "$name" "$(cat "$run/host_key.pub")" >"$run/known_hosts"
        if "$sshd" -f "$run/sshd_config" -E "$run/sshd.log" 9>&- 8>&- </dev/null; then
            for _ in $(seq 100); do
                [ ! -s "$run/sshd.pid" ] || return 0
                sleep 0.05
            done
        fi
        [ -z "$port" ] || break
    done
    tail -3 "$run/sshd.log" >&2
    stop
    fail "sshd does not start on 127.0.0.1${port:+ at port $port}; another --port, or what it says above, is the way on"
}

stop() {
    local number entry
    if runs; then
        read -r number _ <"$run/holder"
        kill -KILL "$number" 2>/dev/null || true
        # The kernel ends every process of a namespace with its first, once those that entered it from here take in what they wait for:
        # nsenter may be stopped, as it stops itself with what it started.
        for entry in /proc/[0-9]*; do
            case $({ tr '\0' ' ' <"$entry/cmdline"; } 2>/dev/null) in
                "nsenter --target $number "*" chroot $root "*) kill -KILL "${entry#/proc/}" 2>/dev/null || true ;;
            esac
        done
        for _ in $(seq 200); do
            [ -e "/proc/$number" ] || break
            sleep 0.05
        done
    fi
    if [ -s "$run/sshd.pid" ]; then
        number=$(cat "$run/sshd.pid")
        if tr '\0' ' ' <"/proc/$number/cmdline" 2>/dev/null | grep -qF "$run/sshd_config"; then
            kill "$number" 2>/dev/null || true
            for _ in $(seq 100); do
                [ -e "/proc/$number" ] || break
                sleep 0.05
            done
        fi
    fi
    rm -rf "$run"
}

told() {
    printf 'Debian %s for arm64 under %s, emulated; on 127.0.0.1, port %s, named %s for ssh -F %s' "$SUITE" \
        "$("$(emulator)" --version | head -1)" "$(sed -n 's/^Port //p' "$run/sshd_config")" "$name" "$run/ssh_config"
}

locked() { # one at a time
    mkdir -p "$cache" || fail "$cache cannot be made; give --cache another folder"
    exec 9>"$cache/lock"
    flock 9
}

exec 8>&2
case $command in
    make) locked; make_root; say "$root is made" ;;
    start) locked; start ;;
    stop) locked; stop ;;
    remove)
        locked
        stop
        chmod -R u+w "$root" 2>/dev/null || true
        rm -rf "$root" "$cache/recipe" "$cache/make.log" "$cache"/making-*
        ;;
    status)
        if [ -d "$root" ]; then
            printf 'made: %s\n' "$root"
            sed -n 's/^\(python3\|gcc-[0-9]*\|libc6\) \(.*\)/  \1 \2/p' "$root/etc/vsparse/packages"
            sed 's/^/  /' "$root/etc/vsparse/wheels"
        else
            printf 'not made\n'
        fi
        runs || { printf 'stopped\n'; exit 3; }
        printf 'runs: %s\n' "$(told)"
        ;;
    shell)
        runs || fail "it does not run; start it first"
        entering
        cd /
        if [ $# -eq 0 ]; then exec "${enter[@]}" /bin/bash -l; fi
        exec "${enter[@]}" /bin/sh -c 'cd && eval "$1"' sh "$*"
        ;;
    session) # of sshd
        runs || fail "it does not run"
        entering
        cd /
        if [ -z "${SSH_ORIGINAL_COMMAND:-}" ]; then exec "${enter[@]}" /bin/bash -l; fi
        exec "${enter[@]}" /bin/sh -c 'cd && eval "$1"' sh "$SSH_ORIGINAL_COMMAND"
        ;;
    within) [ "$$" = 1 ] || fail "within is for the script itself" 2; within "$1" "${@:2}" ;;
    *) fail "there is no command $command; see --help" 2 ;;
esac
