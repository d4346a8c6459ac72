import { CkptError, type EngineTarget } from '@ckpt/core'
import { engineChecksums, type RankChecksum } from './engine-checksums.ts'
import { whereOf } from './engine-ready.ts'
import { KnownChecksums } from './known-checksums.ts'

export interface VerifiedEngine {
  readonly url: string
  /** `equal`: to what was recorded of the same files. `recorded`: at least one rank for the first time. `no_route`: it cannot be asked. */
  readonly result: 'equal' | 'recorded' | 'no_route'
  readonly ranks: number
}

/**
 * Asks engines that were updated for the checksums of their parameters, and compares them with what they, or others like them, had of
 * the same files before. What is seen for the first time is recorded.
 *
 * @param files what they were updated with; read again here
 * @throws CkptError `engine_failed` naming the engine and the rank whose checksum is another one, and as {@link engineChecksums}
 */
export async function verifyUpdate(
  engines: readonly EngineTarget[],
  files: readonly string[],
  known?: KnownChecksums,
): Promise<VerifiedEngine[]> {
  const told = await Promise.all(engines.map((engine) => engineChecksums(engine)))
  if (told.every((ranks) => ranks === null)) return engines.map(withoutRoute)
  const digest = await digestOf(files)
  const book = known ?? (await KnownChecksums.open())
  const verified = engines.map((engine, i) => {
    const ranks = told[i] ?? null
    return ranks === null ? withoutRoute(engine) : compare(engine, ranks, digest, book)
  })
  if (verified.some(({ result }) => result === 'recorded')) await book.save()
  return verified
}

function withoutRoute({ url }: EngineTarget): VerifiedEngine {
  return { url, result: 'no_route', ranks: 0 }
}

function compare(
  engine: EngineTarget,
  ranks: readonly RankChecksum[],
  digest: string,
  known: KnownChecksums,
): VerifiedEngine {
  let result: VerifiedEngine['result'] = 'equal'
  for (const { layout, checksum } of ranks) {
    const before = known.compare(digest, layout, checksum)
    if (before === null) result = 'recorded'
    else if (before.checksum !== checksum) {
      const message = `${whereOf(engine)}: the checksum of ${layout} is ${checksum}; with the same files it was ${before.checksum} on ${before.at}. Where that engine was of another version or had other options, remove ${known.path}`
      throw new CkptError('engine_failed', message, { phase: 'post' })
    }
  }
  return { url: engine.url, result, ranks: ranks.length }
}

/** Of what the files have, whatever their names are. */
async function digestOf(files: readonly string[]): Promise<string> {
  const each = await Promise.all(
    files.map(async (path) => {
      const hash = new Bun.CryptoHasher('sha256')
      for await (const chunk of Bun.file(path).stream()) hash.update(chunk)
      return hash.digest('hex')
    }),
  )
  return new Bun.CryptoHasher('sha256').update(each.toSorted().join()).digest('hex')
}
