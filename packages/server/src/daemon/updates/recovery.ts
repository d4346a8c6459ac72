import { mkdir } from 'node:fs/promises'
import { EngineClient } from '../../engines/client.ts'
import type { Journal, JournalDocument, TornMark } from './journal.ts'
import { isAlive, removeSharedMemory } from './journal-processes.ts'
import type { RankPool } from '../rank/pool.ts'
import type { EngineBook } from './engines.ts'
import { removeSockets } from './sockets.ts'

const RELEASE_MS = 10_000
const IPC = 'ipc://'

/** What a daemon that starts found and did. */
export interface Recovery {
  /** Addresses at which an engine's worker still waits. */
  readonly left: readonly string[]
  readonly sharedMemory: readonly string[]
}

/**
 * Ends what a dead predecessor left: its engines' workers are told to leave (ten seconds at most), its shared memory and sockets
 * are removed, its torn marks are taken over.
 */
export async function recoverFrom(
  document: JournalDocument,
  pool: RankPool,
  book: EngineBook,
  journal: Journal,
): Promise<Recovery> {
  const marks = new Map(document.torn.map((mark) => [keyOf(mark), mark]))
  if (await isAlive(document.pid, document.process_start)) {
    // the lock of the state directory forbids it; a process of the same pid in another namespace is none of ours
    book.restore([...marks.values()], keyOf)
    return { left: [], sharedMemory: [] }
  }
  const addresses = document.conversations.map((one) => one.address)
  const left = await release(addresses, document.socket_dir, pool)
  // an engine whose update was cut off holds a part of it, for all we know
  for (const { engine_url, uds, update_id, dialect } of document.conversations) {
    if (engine_url === null) continue
    const mark: TornMark = {
      url: engine_url,
      uds,
      update_id,
      dialect,
      paused: false,
      restart_needed: false,
      listener: null,
    }
    if (!marks.has(keyOf(mark))) marks.set(keyOf(mark), mark)
  }
  book.restore([...marks.values()], keyOf)
  await removeSockets(document.socket_dir)
  const sharedMemory = await removeSharedMemory(document.pid)
  await journal.conversations([])
  await book.save()
  return { left, sharedMemory }
}

async function release(
  addresses: readonly string[],
  socketDir: string,
  pool: RankPool,
): Promise<readonly string[]> {
  // only what lies in the directory of the engines' sockets: the journal may not make us bind anywhere else
  const ours = addresses.filter((one) => one.startsWith(`${IPC}${socketDir}/`))
  const [link] = pool.links
  if (ours.length === 0 || link === undefined) return []
  await mkdir(socketDir, { recursive: true, mode: 0o700 })
  const request = { type: 'release_left', addresses: ours, limitMs: RELEASE_MS } as const
  return (await link.request(request)).left
}

function keyOf(mark: Pick<TornMark, 'url' | 'uds'>): string {
  const { base } = new EngineClient({ url: mark.url, uds: mark.uds, token: null })
  return mark.uds === null ? base : `${base} unix:${mark.uds}`
}
