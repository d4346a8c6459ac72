/**
 * Run by `link.test.ts` as a process of its own, because it frees device memory by guessing its handle. Two ranks have met, and
 * their Workers die with what they have, because their rings were freed behind their backs. Prints how many communicators there
 * were before and after, as JSON.
 */
import { openLibrary, selectDevices } from '@ckpt/cuda'
import { clockMs } from '../../clock.ts'
import { Communicators } from '../../updates/communicators.ts'
import { RankTeam } from '../../updates/team.ts'
import { RankPool } from '../pool.ts'
import { abortCommunicators, freeDeviceMemory } from './guessed-handles.ts'
import { ABORTED, planInput, RING_BYTES, RUN } from './one-rank.ts'

const END_MS = 20_000
/** After the threads have ended. */
const SETTLED_MS = 300

const { library: options, ranks } = selectDevices('host:1', 2)
const native = openLibrary(options)
let died = 0
const pool = await RankPool.start(options, native, ranks, {
  failed: () => {},
  dead: () => died++,
  left: () => {},
})
const links = await pool.use([0, 1])
for (const link of links) await link.request({ type: 'plan', key: 'plan', input: planInput(1) })
const team = new RankTeam(RUN, links, () => {})
const times = { openMs: END_MS, deadlineMs: clockMs() + END_MS }
const alone = { address: null, http: false, engine: null, dialect: null }
const plan = { planKey: 'plan', ringBytes: RING_BYTES, buffers: [], readings: [], remotes: [] }
await team.open({ ...plan, ...times }, () => alone, new Communicators(END_MS))
const before = abortCommunicators(native)
const freed = freeDeviceMemory(native)
// nobody has told them to drop what they keep
for (const link of links) link.abort(RUN, ABORTED, 100)
await Promise.all(links.map((link) => link.settled(RUN)))
await Bun.sleep(SETTLED_MS)
const result = { before, freed, died, after: abortCommunicators(native) }
await new Promise<void>((resolve) => {
  process.stdout.write(`${JSON.stringify(result)}\n`, () => resolve())
})
process.exit(0)
