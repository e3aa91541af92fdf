#!/usr/bin/env bash
# Makes a realistic disk image: a GPT, one partition, an ext4 file system in it, filled with this machine's own programs.
#
#   scripts/make-disk.sh OUT SIZE [--kind KIND] [--fill BYTES|auto] [--loop]
#
#   OUT             the image file, sparse. One that was made with the same SIZE and --fill is used again
#   SIZE            of the disk, as in 10G (powers of 1024)
#   --kind KIND     server (the default): whatever a server has installed, with its documents and package lists
#                   programs: toolchains, shared libraries, language runtimes
#                   packed: archives, layers of containers and encrypted bytes, which do not shrink
#                   database: rows, indexes and logs
#   --fill BYTES    file contents to put on it, as in 8G; auto (the default) is four fifths of SIZE
#   --loop          attach the image, read-only, as a loop device (needs root); `losetup -d` gives it back
#
# The last line on stdout is the path to read: the loop device's, or the file's. All talk goes to stderr.
#
# The files of a server come from /usr, then /opt, then toolchains of the user's (rustup, cargo's registry, pyenv), then package lists;
# where all of that is not enough, from the same again, under another name. /etc, /var/log, the rest of the home folders
# and whatever else may hold a secret are never read. Files that vanish meanwhile are left out.
#
# As root the file system is mounted and filled with tar; without root, or where nothing can be mounted, mkfs.ext4 fills
# it from a copy of the files beside OUT, for which there must be room.
set -euo pipefail

# Names and times that don't depend on the machine or the day.
readonly disk_id=5A9F0E57-0000-4000-8000-000000000001
readonly partition_id=5A9F0E57-0000-4000-8000-000000000002
readonly file_system_id=5a9f0e57-0000-4000-8000-000000000003
export E2FSPROGS_FAKE_TIME=1700000000
# A change in what this script writes makes images of older ones unusable for a comparison.
readonly recipe=1
readonly partition_start=$((1 << 20))
# The backup GPT takes the last 33 sectors; the partition ends a whole MiB before the disk's end.
readonly partition_tail=$((1 << 20))

say() { echo "make-disk.sh: $*" >&2; }
die() {
  say "$*"
  exit 1
}
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

# sgdisk, mkfs and losetup live where a user's PATH may not look.
PATH=$PATH:/usr/sbin:/sbin

out='' size='' kind=server fill=auto attach=no
while (($# > 0)); do
  case $1 in
    --fill)
      fill=${2:?--fill needs a number of bytes}
      shift
      ;;
    --kind)
      kind=${2:?--kind needs server, programs, packed or database}
      shift
      ;;
    --loop) attach=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    -*)
      usage >&2
      exit 2
      ;;
    *)
      if [[ -z $out ]]; then out=$1; elif [[ -z $size ]]; then size=$1; else
        usage >&2
        exit 2
      fi
      ;;
  esac
  shift
done
[[ -n $out && -n $size ]] || {
  usage >&2
  exit 2
}

case $kind in
  server | programs | packed | database) ;;
  *) die "--kind $kind: give server, programs, packed or database" ;;
esac

bytes_of() {
  numfmt --from=iec "${1%[bB]}" 2>/dev/null || die "$1: not a size; write 10G or 512M"
}
size=$(bytes_of "$size")
((size >= 64 << 20)) || die "a disk needs 64M at least"
((size % (1 << 20) == 0)) || die "the size must be a multiple of 1M"
if [[ $fill == auto ]]; then
  fill=$((size * 4 / 5))
else
  fill=$(bytes_of "$fill")
fi
readonly partition_size=$((size - partition_start - partition_tail))
# Inode tables, journal and block bitmaps take about 5 %.
((fill <= partition_size * 94 / 100)) || die "$fill bytes of files don't fit a disk of $size bytes"

attach_and_end() {
  if [[ $attach == yes ]]; then
    ((EUID == 0)) || die "--loop needs root"
    # Direct I/O spares the page cache a second copy, where the file system allows it.
    losetup --find --show --read-only --direct-io=on "$out" 2>/dev/null || losetup --find --show --read-only "$out"
  else
    echo "$out"
  fi
  exit 0
}

made_as="recipe=$recipe size=$size fill=$fill"
[[ $kind == server ]] || made_as="kind=$kind $made_as"
readonly made_as
if [[ -f $out && -f $out.recipe && $(<"$out.recipe") == "$made_as" && $(stat --format=%s "$out") == "$size" ]]; then
  say "$out is there already ($made_as)"
  attach_and_end
fi

for tool in sgdisk mkfs.ext4 losetup tar; do
  command -v "$tool" >/dev/null || die "$tool is missing: scripts/install-system.sh --demo installs it"
done

mkdir -p "$(dirname "$out")"
out=$(realpath "$out")
work=$(mktemp -d "$out.making.XXXXXX")
loop='' mounted=no
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  [[ $mounted == no ]] || umount "$work/mnt" || umount --lazy "$work/mnt"
  [[ -z $loop ]] || losetup --detach "$loop"
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# --- which files -----------------------------------------------------------------------------------------------------

if [[ $kind == programs ]]; then
  candidates=("$HOME/.rustup/toolchains" "$HOME/.pyenv/versions" /usr/lib /usr/bin /usr/local /opt)
else
  candidates=(/usr /opt "$HOME/.rustup/toolchains" "$HOME/.cargo/registry/src" "$HOME/.cargo/registry/cache"
    "$HOME/.pyenv/versions" /var/lib/dpkg/info /var/lib/apt/lists /var/cache/apt/archives)
fi
roots=()
for folder in "${candidates[@]}"; do
  [[ -d $folder ]] && roots+=("$folder")
done

# Readable files of a folder in the order of their names, as DEVICE:INODE TAB SIZE TAB PATH.
list_folder() {
  { find "$1" -xdev \( -name '*
*' -prune \) -o -type f -readable -printf '%D:%i\t%s\t%p\n' 2>/dev/null || true; } | LC_ALL=C sort -t $'\t' -k 3
}

# One folder after the other until there is enough; hard links once.
list_files() {
  local folder
  for folder in "${roots[@]}"; do
    list_folder "$folder" >>"$work/listed"
    awk -F '\t' '!seen[$1]++ { print $2 "\t" $3 }' "$work/listed" >"$work/all"
    ((fill > $(awk -F '\t' '{ sum += $1 } END { printf "%.0f", sum }' "$work/all"))) || break
  done
  [[ -s $work/all ]] || die "no files found under ${roots[*]}"
}
# One inode serves each 8 KiB of the file system (mkfs -i below).
most_files=$((partition_size * 9 / 10 / 8192))

# pick SKIP: PATHs whose sizes, in whole 4 KiB blocks, add up to the bytes still wanted; what a copy is short of is left
# in $still.
still=$fill
pick() {
  awk -F '\t' -v want="$still" -v most="$most_files" -v rest="$work/still" '
    { blocks = int(($1 + 4095) / 4096) * 4096 }
    n < most && blocks <= want { want -= blocks; n++; print $2 }
    END { printf "%.0f\n", want >rest }
  ' "$work/all"
  still=$(<"$work/still")
}

# fill_folder FOLDER: fills FOLDER with files of the kind.
fill_folder() {
  case $kind in
    packed | database) still=$((fill - $("$(dirname "$0")/disk-content.py" "$kind" "$1" "$fill"))) ;;
    *)
      list_files
      copy_into "$1"
      ;;
  esac
}

# copy_into FOLDER: fills FOLDER with the picked files.
copy_into() {
  local copy=1 into=$1 before
  while :; do
    before=$still
    pick >"$work/picked"
    [[ -s $work/picked ]] || break
    # tar reads one file after the other, which takes minutes when tens of thousands of small ones come from a cold disk:
    # several readers go before it, and leave the files in the page cache.
    tr '\n' '\0' <"$work/picked" | xargs -0 -n 64 -P 16 cat >/dev/null 2>&1 || true
    # tar's status 1 is "some files changed or vanished meanwhile", and 2 is "something could not be read" as well as worse;
    # what counts is the check at the end. Only the reader may fail so.
    { tar --create --file=- --no-recursion --null --files-from=<(tr '\n' '\0' <"$work/picked") \
      --absolute-names --ignore-failed-read --warning=none --mtime=@$E2FSPROGS_FAKE_TIME 2>/dev/null || true; } |
      tar --extract --file=- --directory="$into" --no-same-owner --transform='s,^/*,,' --delay-directory-restore
    # A disk with less than a hundredth missing is full enough.
    ((still > fill / 100 && still < before)) || break
    copy=$((copy + 1))
    into=$1/copy$copy
    mkdir "$into"
    say "this machine's files are used up: copy $copy begins"
  done
}

# --- the disk --------------------------------------------------------------------------------------------------------

disk=$work/disk
truncate --size="$size" "$disk"
sgdisk --clear --disk-guid="$disk_id" --set-alignment=2048 \
  --new="1:$((partition_start / 512)):$(((partition_start + partition_size) / 512 - 1))" --typecode=1:8300 \
  --change-name=1:root --partition-guid="1:$partition_id" "$disk" >/dev/null

make_file_system() {
  mkfs.ext4 -q -F -b 4096 -i 8192 -m 0 -L root -U "$file_system_id" \
    -E "offset=$partition_start,hash_seed=$file_system_id,lazy_itable_init=1,nodiscard,root_owner=0:0" "$@" "$disk" \
    "$((partition_size / 4096))"
}

# A partition of a loop device is not always scanned, so the file system gets a loop device of its own.
mount_file_system() {
  ((EUID == 0)) || return 1
  mkdir -p "$work/mnt"
  loop=$(losetup --find --show --offset "$partition_start" --sizelimit "$partition_size" "$disk" 2>/dev/null) || {
    loop=''
    return 1
  }
  mount -t ext4 -o noatime,noinit_itable "$loop" "$work/mnt" 2>/dev/null || return 1
  mounted=yes
}

say "making $out: a $kind disk of $size bytes, $fill of them files"
make_file_system
if mount_file_system; then
  fill_folder "$work/mnt"
  umount "$work/mnt"
  mounted=no
  losetup --detach "$loop"
  loop=''
else
  if [[ -n $loop ]]; then
    losetup --detach "$loop"
    loop=''
  fi
  mkdir "$work/tree"
  fill_folder "$work/tree"
  chmod -R u+rwX "$work/tree"
  make_file_system -d "$work/tree"
fi
((still <= fill / 20)) || die "found only $((fill - still)) of $fill bytes of files"

mv "$disk" "$out"
echo "$made_as" >"$out.recipe"
say "done: $(($(stat --format=%b "$out") * 512)) bytes of $size in use, in $SECONDS s"
attach_and_end
