import { mkdir } from 'node:fs/promises'
import { engineKey } from './engine-key.ts'
import type { EngineMark, Journal, JournalConversation, JournalDocument } from './journal.ts'
import { isAlive } from './journal-processes.ts'
import type { RankPool } from '../rank/pool.ts'
import type { EngineBook } from './engines.ts'
import { removeSockets } from './sockets.ts'

const RELEASE_MS = 10_000
/** No worker comes so long after its update has ended. */
const WAITED_MS_MAX = 600_000
const IPC = 'ipc://'

/** What a daemon that starts found. */
export interface Recovery {
  /** Addresses at which an engine's worker still waits. */
  readonly left: readonly string[]
}

/**
 * Ends what a dead predecessor left: its marks of engines are taken over, its engines' workers are told to leave (ten seconds at
 * most), its sockets are removed. Its shared memory went when the native library was opened.
 */
export async function recoverFrom(
  document: JournalDocument,
  pool: RankPool,
  book: EngineBook,
  journal: Journal,
): Promise<Recovery> {
  book.restore(marksOf(document), engineKey)
  // the lock of the state directory forbids it; a process of the same pid in another namespace is none of ours
  const alive = await isAlive(document.pid, document.process_start)
  // first of all and in one write: who is killed from here on leaves the next one as much as this one found
  await journal.takeOver(alive ? null : document, book.marks)
  if (alive) return { left: [] }
  await removeSockets(document.socket_dir)
  const left = await release(document, pool)
  await journal.ended((address) => pool.keeps(address))
  return { left }
}

/** An engine whose update was cut off holds a part of it, for all we know. */
export function marksOf(
  document: Pick<JournalDocument, 'engines' | 'conversations'>,
): EngineMark[] {
  const marks = new Map(document.engines.map((mark) => [engineKey(mark), mark]))
  for (const { engine_url: url, uds, node, update_id, dialect, ended } of document.conversations) {
    if (url === null || ended) continue
    const key = engineKey({ url, uds, node })
    const known = marks.get(key)
    const fresh = { paused: false, restart_needed: false, listener: null }
    marks.set(key, {
      ...fresh,
      url,
      uds,
      ...(node === undefined ? {} : { node }),
      ...known,
      dialect: known?.dialect ?? dialect,
      update_id: known?.update_id ?? update_id,
    })
  }
  return [...marks.values()]
}

async function release(
  { conversations, socket_dir: socketDir }: JournalDocument,
  pool: RankPool,
): Promise<readonly string[]> {
  // only what lies in the directory of the engines' sockets: the journal may not make us bind anywhere else
  const ours = conversations.filter((one) => one.address.startsWith(`${IPC}${socketDir}/`))
  const cutOff = ours.filter((one) => !one.ended).map((one) => one.address)
  // a worker that did not come to its update may come at any time: nobody waits for it
  const ended = ours.filter((one) => one.ended && !isTooOld(one)).map((one) => one.address)
  const [link] = pool.links
  if (cutOff.length + ended.length === 0 || link === undefined) return []
  await mkdir(socketDir, { recursive: true, mode: 0o700 })
  const request = { type: 'release_left', cutOff, ended, limitMs: RELEASE_MS } as const
  return (await link.request(request)).left
}

function isTooOld({ ended_ms: endedMs = 0 }: JournalConversation): boolean {
  return Math.abs(Date.now() - endedMs) > WAITED_MS_MAX
}
