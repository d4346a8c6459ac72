import { CkptError, type EngineTarget } from '@ckpt/core'
import { type } from 'arktype'
import { splitEngineUrl } from '../engines/url.ts'
import { whereOf } from './engine-ready.ts'

/** Of the largest models the first answer takes some ten seconds. */
const LIMIT_MS = 600_000

/** `POST /weights_checker` of SGLang 0.5.16 with the action `checksum`. */
const CheckerAnswer = type({
  success: 'boolean',
  'message?': 'string',
  'ranks?': type({
    checksums: 'Record<string, string>',
    per_gpu_checksum: 'string > 0',
    parallelism_info: {
      tp_rank: 'number',
      tp_size: 'number',
      dp_rank: 'number',
      dp_size: 'number',
      pp_rank: 'number',
      pp_size: 'number',
    },
  })
    .array()
    .atLeastLength(1),
})

/** What the parameters of one rank of an engine come to. */
export interface RankChecksum {
  /** Which rank of how many, and which parameters: with others the checksum is another one. */
  readonly layout: string
  readonly checksum: string
}

/**
 * The checksums of all ranks of an engine by its own code. Null: it has no route for that, as only SGLang has.
 *
 * @throws CkptError `engine_unreachable`, `engine_failed` with what it says
 */
export async function engineChecksums(target: EngineTarget): Promise<RankChecksum[] | null> {
  const answer = await ask(target)
  if ([404, 405, 501].includes(answer.status)) return null
  const told = CheckerAnswer(await answer.json().catch(() => null))
  if (told instanceof type.errors || !told.success || told.ranks === undefined) {
    const words = told instanceof type.errors ? 'not in a form that is known' : told.message
    const message = `${whereOf(target)}: /weights_checker answered ${answer.status}: ${words ?? ''}`
    throw new CkptError('engine_failed', message, { phase: 'post' })
  }
  return told.ranks.map(({ checksums, per_gpu_checksum: checksum, parallelism_info: at }) => {
    const names = Object.keys(checksums).toSorted()
    const digest = new Bun.CryptoHasher('sha256').update(names.join('\n')).digest('hex')
    const ranks = (['tp', 'pp', 'dp'] as const).map(
      (kind) => `${kind} ${at[`${kind}_rank`]} of ${at[`${kind}_size`]}`,
    )
    return {
      layout: `${ranks.join(', ')}, ${names.length} parameters ${digest.slice(0, 12)}`,
      checksum,
    }
  })
}

async function ask(target: EngineTarget): Promise<Response> {
  const init: BunFetchRequestInit = {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ action: 'checksum' }),
    signal: AbortSignal.timeout(LIMIT_MS),
    proxy: false,
  }
  if (target.uds !== undefined) init.unix = target.uds
  try {
    return await fetch(`${splitEngineUrl(target.url).base}/weights_checker`, init)
  } catch (error) {
    const { message } = CkptError.wrap(error)
    throw new CkptError('engine_unreachable', `${whereOf(target)}: /weights_checker: ${message}`)
  }
}
