import type { Bench } from './bench.ts'
import { broadcast } from './broadcast.ts'
import { conversation } from './conversation.ts'
import { direct } from './direct.ts'
import { fresh } from './fresh.ts'
import { gather } from './gather.ts'
import { h2d } from './h2d.ts'
import { p2p } from './p2p.ts'
import { peers } from './peers.ts'
import { pickle } from './pickle.ts'
import { plan } from './plan.ts'
import { prediction } from './prediction.ts'
import { ranks } from './ranks.ts'
import { register } from './register.ts'
import { replicas } from './replicas.ts'
import { reload } from './reload.ts'
import { trace } from './trace.ts'
import { trainer } from './trainer.ts'
import { update } from './update.ts'

/** In the order of an update. */
export const BENCHES: readonly Bench[] = [
  register,
  gather,
  plan,
  pickle,
  conversation,
  h2d,
  broadcast,
  reload,
  direct,
  update,
  ranks,
  replicas,
  p2p,
  prediction,
  fresh,
  peers,
  trainer,
  trace,
]
