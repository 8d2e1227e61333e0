#!/bin/sh
# Process 1 of a guest whose Debian is unpacked but not set up. It says on the console how each
# phase ended; what a phase printed is in /log, and shown if it failed.

export PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true

mkdir -p /proc /sys /dev /log
chmod 1777 /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
hostname debian

# Runs the function of this name. Descriptor 3 is the console.
phase() {
    read -r begin _ </proc/uptime
    (
        set -ex
        "$1"
    ) >"/log/$1" 2>&1
    status=$?
    read -r end _ </proc/uptime
    seconds=$(echo "$begin $end" | awk '{ printf "%.2f", $2 - $1 }')
    echo "userland: $1 status $status after $seconds s"
    [ $status = 0 ] || tail -n 200 "/log/$1"
}

# Installs one package of the archive whatever it depends on.
core() {
    dpkg --force-depends --install "/repository/$1"_*.deb
}

# The order is debootstrap's, and forced by the maintainer scripts: files of users before those
# that belong to them, then what the scripts of the others run.
base() {
    ln -s /usr/share/zoneinfo/UTC /etc/localtime
    for package in base-passwd base-files dpkg libc6 perl-base; do
        core "$package"
    done
    rm /usr/bin/awk
    core mawk
    core debconf
    cd /repository
    xargs dpkg --force-depends --unpack </base-packages
    dpkg --configure --pending --force-configure-any --force-depends
    [ -z "$(dpkg --audit)" ]
}

# An archive without a pool (sources.list(5)): its index says where the files are.
repository() {
    cd /repository
    for deb in *.deb; do
        dpkg-deb --field "$deb"
        echo "Filename: ./$deb"
        echo "Size: $(stat --format %s "$deb")"
        echo "SHA256: $(sha256sum "$deb" | cut -d ' ' -f 1)"
        echo
    done >Packages
    echo 'deb [trusted=yes] file:/repository ./' >/etc/apt/sources.list
    apt-get update
}

install() {
    xargs apt-get install --yes --no-install-recommends </installed-packages
    [ -z "$(dpkg --audit)" ]
    [ "$(hello)" = 'Hello, world!' ]
    [ "$(echo '2^100' | bc)" = 1267650600228229401496703205376 ]
    [ "$(echo 'select sum(value) from generate_series(1, 1000);' | sqlite3)" = 500500 ]
}

sources() {
    mkdir /build
    cd /build
    for description in /source/*.dsc; do
        dpkg-source --no-check --extract "$description"
    done
}

build_hello() {
    cd /build/hello-*
    ./configure
    make -j "$(nproc)"
    make check
    ./hello --greeting=built
}

build_zlib() {
    cd /build/zlib-*
    ./configure
    make -j "$(nproc)"
    make test
}

# The tests of the language, its numbers, its C libraries, and of what asks much of a kernel:
# threads, processes, signals, memory maps, terminals, polling.
python() {
    ifconfig lo up
    # A zip archive has no times before 1980, and files of the initrd are from 1970.
    find / -xdev ! -newermt 1980-01-01 -exec touch -h {} +
    cd /tmp
    python3 -m test -j "$(nproc)" --timeout 1200 \
        test_array test_ast test_binascii test_bytes test_bz2 test_class test_cmath test_codecs \
        test_compile test_complex test_coroutines test_csv test_ctypes test_datetime \
        test_decimal test_descr test_dict test_dis test_epoll test_exceptions test_faulthandler \
        test_fcntl test_file test_float test_fork1 test_fractions test_functools test_gc \
        test_generators test_glob test_grammar test_gzip test_hashlib test_heapq test_int \
        test_io test_itertools test_json test_list test_long test_lzma test_math \
        test_memoryview test_mmap test_os test_pathlib test_pickle test_poll test_posix \
        test_pty test_queue test_random test_re test_resource test_select test_selectors \
        test_set test_shutil test_signal test_sort test_statistics test_struct \
        test_subprocess test_sys test_tarfile test_tempfile test_thread test_threading \
        test_time test_unicode test_wait3 test_wait4 test_weakref test_xml_etree test_zipfile \
        test_zlib
}

echo "userland: begin on $(nproc) CPUs"
for name in base repository install sources build_hello build_zlib python; do
    phase "$name"
done
grep -h -E '^[0-9]+ tests? (OK|failed)|^Result:' /log/* | sed 's/^/userland: /'
dmesg
echo 'userland: done'
echo o >/proc/sysrq-trigger
sleep 100
