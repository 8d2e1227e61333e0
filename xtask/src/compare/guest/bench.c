// The small workloads of `cargo xtask compare`, as one static program for guests and host alike.
//
//     bench WORKLOAD COUNT
//
// prepares, says "compare: go" on standard error, and does the work COUNT times. What it prints
// on standard output depends on the work alone, so that a CPU that computes wrongly is found out.

#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, LINE = 64, MIB = 1 << 20 };

static void check(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

/// The preparation is done: time counts from here.
static void go(void) {
    static const char line[] = "compare: go\n";
    check(write(2, line, sizeof line - 1) > 0, "write");
}

/// Marsaglia's xorshift64* (Journal of Statistical Software, 2003; Vigna, 2016).
static uint64_t random_next(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dULL;
}

static void *map(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED, "mmap");
    return at;
}

// User code.

/// Text of 64 KiB for each of `count`, in lines of words of which some are frequent.
static void text(long count) {
    static char piece[64 << 10];
    uint64_t state = 1;
    for (; count > 0; count--) {
        for (size_t at = 0, words = 0; at < sizeof piece; words++) {
            uint64_t random = random_next(&state);
            uint64_t word = (random & 0xfff) * (random >> 12 & 0xf) / 15;
            for (int letters = 2 + word % 7; letters > 0 && at < sizeof piece - 1; letters--) {
                piece[at++] = 'a' + word % 26;
                word = word * 31 + 7;
            }
            piece[at] = at == sizeof piece - 1 || words % 8 == 7 ? '\n' : ' ';
            at++;
        }
        check(fwrite(piece, sizeof piece, 1, stdout) == 1, "write");
    }
}

/// Five bodies under gravity: scalar double precision, with divisions and square roots.
static void nbody(long count) {
    enum { BODIES = 5 };
    static struct { double at[3], speed[3], mass; } body[BODIES];
    for (int i = 0; i < BODIES; i++) {
        body[i].mass = i == 0 ? 40 : 0.01 * i;
        body[i].at[0] = 4.0 * i;
        body[i].at[1] = 0.1 * i;
        body[i].speed[1] = i == 0 ? 0 : sqrt(10.0 / i);
        body[i].speed[2] = 0.01 * i;
    }
    go();
    const double step = 0.001;
    for (; count > 0; count--) {
        for (int i = 0; i < BODIES; i++) {
            for (int j = i + 1; j < BODIES; j++) {
                double way[3], square = 0;
                for (int k = 0; k < 3; k++) {
                    way[k] = body[i].at[k] - body[j].at[k];
                    square += way[k] * way[k];
                }
                double pull = step / (square * sqrt(square));
                for (int k = 0; k < 3; k++) {
                    body[i].speed[k] -= way[k] * body[j].mass * pull;
                    body[j].speed[k] += way[k] * body[i].mass * pull;
                }
            }
        }
        for (int i = 0; i < BODIES; i++)
            for (int k = 0; k < 3; k++)
                body[i].at[k] += step * body[i].speed[k];
    }
    printf("%a\n", body[1].at[0]);
}

/// Follows a chain of pointers through `mib` MiB, one in each cache line. The next line's number
/// is that of a full-period linear congruential generator, which no prefetcher foresees.
static void chase(long mib, long count) {
    size_t lines = mib * MIB / LINE;
    char *memory = map(lines * LINE);
    for (size_t i = 0; i < lines; i++)
        *(void **)(memory + i * LINE) = memory + (i * 1664525 + 1013904223) % lines * LINE;
    go();
    void **at = (void **)memory;
    for (long i = 0; i < count; i++)
        at = *at;
    printf("%td\n", (char *)at - memory);
}

/// Copies 16 MiB.
static void copy(long count) {
    enum { BYTES = 16 * MIB };
    char *from = map(BYTES), *to = map(BYTES);
    memset(from, 1, BYTES);
    memset(to, 2, BYTES);
    go();
    for (long i = 0; i < count; i++) {
        from[i % BYTES] = (char)i;
        memcpy(to, from, BYTES);
    }
    printf("%d\n", to[(count - 1) % BYTES]);
}

static void *hash(void *count) {
    uint64_t table[512] = {0}, state = 1;
    for (long i = *(long *)count; i > 0; i--) {
        uint64_t random = random_next(&state);
        table[random % 512] += random ^ table[random >> 32 & 511];
    }
    *(long *)count = (long)(table[0] ^ table[511]);
    return NULL;
}

/// Two threads compute, each for itself.
static void parallel(long count) {
    pthread_t threads[2];
    long counts[2] = {count, count};
    go();
    for (int i = 0; i < 2; i++)
        check(pthread_create(&threads[i], NULL, hash, &counts[i]) == 0, "pthread_create");
    for (int i = 0; i < 2; i++)
        check(pthread_join(threads[i], NULL) == 0, "pthread_join");
    printf("%lx %lx\n", counts[0], counts[1]);
}

// The kernel's part.

/// A system call that does next to nothing.
static void null_call(long count) {
    long sum = 0;
    go();
    for (; count > 0; count--)
        sum += syscall(SYS_getppid);
    printf("%d\n", sum >= 0);
}

static void pass(int from, int to) {
    char byte;
    check(read(from, &byte, 1) == 1, "read");
    check(write(to, &byte, 1) == 1, "write");
}

/// A byte goes round a ring of processes, each of which reads 16 KiB of memory of its own when it
/// has it.
static void ring(long processes, long count) {
    enum { OWN = 16 << 10 };
    int first[2], in, out;
    check(pipe(first) == 0, "pipe");
    in = first[0];
    volatile char *own = map(OWN);
    memset((char *)own, 1, OWN);
    for (long i = 1; i < processes; i++) {
        int next[2];
        check(pipe(next) == 0, "pipe");
        pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0) {
            memset((char *)own, 1, OWN);
            for (long round = 0; round < count; round++) {
                for (int at = 0; at < OWN; at += LINE)
                    (void)own[at];
                pass(in, next[1]);
            }
            _exit(0);
        }
        close(in);
        close(next[1]);
        in = next[0];
    }
    out = first[1];
    go();
    for (long round = 0; round < count; round++) {
        check(write(out, "x", 1) == 1, "write");
        char byte;
        check(read(in, &byte, 1) == 1, "read");
    }
    int status, ended = 0;
    while (wait(&status) > 0)
        ended += status == 0;
    printf("%d\n", ended);
}

/// Maps 1 MiB, touches each of its pages, unmaps it.
static void fault(long count) {
    long sum = 0;
    go();
    for (; count > 0; count--) {
        char *memory = map(MIB);
        // A huge page would be one fault.
        check(madvise(memory, MIB, MADV_NOHUGEPAGE) == 0, "madvise");
        for (int at = 0; at < MIB; at += PAGE) {
            memory[at] = 1;
            sum += memory[at];
        }
        check(munmap(memory, MIB) == 0, "munmap");
    }
    printf("%ld\n", sum);
}

static volatile sig_atomic_t signals;

static void on_signal(int number) {
    (void)number;
    signals++;
}

/// A signal to oneself, and its handler.
static void deliver(long count) {
    signal(SIGUSR1, on_signal);
    pid_t self = getpid();
    go();
    for (long i = 0; i < count; i++)
        check(kill(self, SIGUSR1) == 0, "kill");
    printf("%d\n", (int)signals);
}

enum { DELAYS_MAX = 1 << 16 };
static int64_t delays[DELAYS_MAX];
static volatile long delays_taken;
static timer_t timer;
static int64_t due;

static int64_t now(void) {
    struct timespec time;
    check(clock_gettime(CLOCK_MONOTONIC, &time) == 0, "clock_gettime");
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/// Lets the timer's interrupt come at `due`, in nanoseconds.
static void arm(void) {
    struct itimerspec at = {.it_value = {due / 1000000000, due % 1000000000}};
    check(timer_settime(timer, TIMER_ABSTIME, &at, NULL) == 0, "timer_settime");
}

/// A timer is due: notes how late this is, and arms it again for 1 to 2 ms from now, so that it
/// keeps no step with anything else.
static void on_timer(int number) {
    (void)number;
    static uint64_t state = 1;
    int64_t time = now();
    if (delays_taken < DELAYS_MAX) delays[delays_taken] = time - due;
    delays_taken++;
    due = time + 1000000 + random_next(&state) % 1000000;
    arm();
}

static int by_length(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/// How late interrupts come while a program spins in user code: from the time for which a timer is
/// set to its signal handler. Prints the median, the 99th percentile and the longest of `count`
/// times, in nanoseconds.
static void delay(long count) {
    if (count > DELAYS_MAX) count = DELAYS_MAX;
    struct sigaction action = {.sa_handler = on_timer};
    check(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
    check(timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0, "timer_create");
    go();
    due = now() + 1000000;
    arm();
    volatile uint64_t spins = 0;
    while (delays_taken < count) spins++;
    check(timer_delete(timer) == 0, "timer_delete");
    qsort(delays, count, sizeof delays[0], by_length);
    printf("%ld %ld %ld\n", (long)delays[count / 2], (long)delays[count * 99 / 100],
           (long)delays[count - 1]);
}

/// A directory with 16 files: made, written, renamed, looked at, removed.
static void files(long count) {
    long bytes = 0;
    go();
    for (; count > 0; count--) {
        check(mkdir("/tmp/files", 0700) == 0, "mkdir");
        for (int i = 0; i < 16; i++) {
            char old[32], new[32];
            struct stat status;
            sprintf(old, "/tmp/files/old-%d", i);
            sprintf(new, "/tmp/files/new-%d", i);
            int file = open(old, O_CREAT | O_EXCL | O_WRONLY, 0600);
            check(file >= 0, "open");
            check(write(file, old, sizeof old) == sizeof old, "write");
            close(file);
            check(rename(old, new) == 0, "rename");
            check(stat(new, &status) == 0, "stat");
            bytes += status.st_size;
            check(unlink(new) == 0, "unlink");
        }
        check(rmdir("/tmp/files") == 0, "rmdir");
    }
    printf("%ld\n", bytes);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: bench WORKLOAD COUNT\n");
        return 2;
    }
    const char *name = argv[1];
    long count = atol(argv[2]), mib;
    if (strcmp(name, "text") == 0) text(count);
    else if (strcmp(name, "nbody") == 0) nbody(count);
    else if (sscanf(name, "chase-%ld", &mib) == 1) chase(mib, count);
    else if (strcmp(name, "memcpy") == 0) copy(count);
    else if (strcmp(name, "parallel") == 0) parallel(count);
    else if (strcmp(name, "syscall") == 0) null_call(count);
    else if (strcmp(name, "pipe") == 0) ring(2, count);
    else if (strcmp(name, "switch") == 0) ring(32, count);
    else if (strcmp(name, "fault") == 0) fault(count);
    else if (strcmp(name, "signal") == 0) deliver(count);
    else if (strcmp(name, "files") == 0) files(count);
    else if (strcmp(name, "delay") == 0) delay(count);
    else if (strcmp(name, "nothing") != 0) {
        fprintf(stderr, "bench: there is no workload %s\n", name);
        return 2;
    }
    return 0;
}
