import type { Journal, JournalDocument } from '../updates/journal.ts'
import type { Random } from './random.ts'
import type { SimulatedTime } from './time.ts'

const WRITE_MS = 5

/** What is left of a daemon's journal when its process ends. */
export class Disk {
  written: Pick<JournalDocument, 'engines' | 'conversations'> = { engines: [], conversations: [] }

  /** Of a new process. What it writes takes its time, one after the other. */
  journal(time: SimulatedTime, random: Random): Journal {
    let now = this.written
    let writing = Promise.resolve()
    const write = (change: Partial<typeof now>) => {
      now = { ...now, ...change }
      const document = now
      writing = writing.then(async () => {
        await time.sleep(random.between(0, WRITE_MS))
        this.written = document
      })
      return writing
    }
    const journal: Pick<Journal, 'conversations' | 'ended' | 'engines'> = {
      conversations(fresh) {
        const ended = now.conversations.filter((one) => one.ended)
        return write({ conversations: [...ended, ...fresh] })
      },
      ended(keeps) {
        const kept = now.conversations.filter(({ address }) => keeps(address))
        return write({ conversations: kept.map((one) => ({ ...one, ended: true })) })
      },
      engines: (marks) => write({ engines: [...marks] }),
    }
    return journal as Journal
  }
}
