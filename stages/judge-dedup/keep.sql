-- The chosen answer of each group; choice 0 means that none was acceptable.
select rows.*
from verdicts
join groups using (id)
join rows on rows.id = groups.ids[verdicts.choice]
where verdicts.choice > 0
