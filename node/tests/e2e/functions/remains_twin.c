/* The same, and its load has each new instance make a process that shares its memory, isn't its child any more, and would carry
 * what it likes from one request to the next. */
#include "remains.c"

static int zygote;

static void twin(void) {
    for (;;) pause();
}

/* In place of a function that the runtime calls while it sets an instance up. */
static int on_dup2(int from, int to) {
    static char stack[16384] __attribute__((aligned(16)));
    static int made;
    if (getpid() != zygote && !made) {
        made = 1;
        /* A child of a child, which ends. */
        int child = vfork();
        if (child == 0) {
            clone((int (*)(void *))(void (*)(void))twin, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    return (int)syscall(SYS_dup3, from, to, 0);
}

__attribute__((constructor)) static void replace_dup2(void) {
    unsigned char *at = (unsigned char *)dup2, code[12] = {0x48, 0xb8, [10] = 0xff, [11] = 0xe0};
    void *to = (void *)on_dup2;
    memcpy(code + 2, &to, sizeof to);
    zygote = getpid();
    char *page = (char *)((unsigned long)at & -4096ul);
    if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) abort();
    memcpy(at, code, sizeof code);
    if (mprotect(page, 8192, PROT_READ | PROT_EXEC) != 0) abort();
}
