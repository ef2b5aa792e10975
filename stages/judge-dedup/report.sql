select count(*) as groups,
       count(*) filter (choice > 0) as groups_kept,
       count(*) filter (choice = 0) as groups_dropped
from verdicts
