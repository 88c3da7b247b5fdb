/* lock.h - one process at a time on a GPU: stages and jobs that were started together take turns.
 *
 *     const int lock = hv_lock_take("0000:3b:00.0", "cuda:0");        // waits
 *     ... compute ...
 *     hv_lock_give(lock);
 *
 * The lock is advisory, flock(2) on /tmp/hv-KEY.lock: the kernel releases it however the process dies. The file
 * stays, open to every user of the machine (so not in a folder of one user's), with the holder's process number in
 * it. HV_LOCK=0 in the environment turns locks off, for machines that share a GPU on purpose (MPS, MIG);
 * HV_LOCK=/FOLDER puts the files there.
 *
 * The lock is a courtesy and never a reason to fail: where no file can be had (a read-only /tmp, a symbolic link or
 * somebody's private file in its place) the caller goes on without, and nothing is said.
 *
 * A process takes a lock as often as it likes and gives it as often: what holds it is the process, so the table of
 * locks is global. Take the locks of several devices in one order everywhere, the lower number first. */
#ifndef HV_LOCK_H
#define HV_LOCK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Waits for the lock of a key; what: how a message names it. Returns a number for hv_lock_give, which takes 0 as well.
 * Any thread. */
int  hv_lock_take(const char *key, const char *what);
void hv_lock_give(int lock);

/* Called once for a lock that was waited for longer than a second, by the thread that waits. pid 0: not known. */
typedef void hv_lock_wait_fn(const char *what, long pid);
void hv_lock_on_wait(hv_lock_wait_fn *say);             /* of the process; NULL: nobody */

#ifdef __cplusplus
}
#endif
#endif
